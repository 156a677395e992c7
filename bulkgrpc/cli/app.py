"""The commands `bulkgrpc`, `bulkgrpc-server` and `bulkgrpc-worker`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import typer

from bulkgrpc.cli import extras
from bulkgrpc.cli.lazy import Command, group_with

_DATA, _SERVICE, _STACK = "Data", "Service", "Local Kafka, PostgreSQL and Valkey"
# The server and the worker parse their options themselves, `--help` included.
_PASS_THROUGH = {"context_settings": {"allow_extra_args": True, "ignore_unknown_options": True}}


_PROCESS = (*_PASS_THROUGH.items(), ("add_help_option", False))
COMMANDS = {
    "demo": Command("demo:demo", _DATA, "stack"),
    "load": Command("load:load", _DATA, "files"),
    "jobs": Command("jobs:app", _DATA),
    "datasets": Command("datasets:app", _DATA),
    "dlq": Command("dlq:app", _DATA, "service"),
    "ledger": Command("ledger:app", _DATA, "service"),
    "server": Command("service:server", _SERVICE, "service", _PROCESS),
    "worker": Command("service:worker", _SERVICE, "service", _PROCESS),
    "migrate": Command("service:migrate", _SERVICE, "service"),
    "doctor": Command("doctor:doctor", _SERVICE, "service"),
    "lag": Command("lag:lag", _SERVICE, "service"),
    "bench": Command("bench:app", _SERVICE, "stack"),
    "tune": Command("tune:tune", _SERVICE, "service"),
    "up": Command("stack:up", _STACK, "stack"),
    "down": Command("stack:down", _STACK, "stack"),
    "status": Command("stack:status", _STACK, "stack"),
    "stack-install": Command("stack:stack_install", _STACK, "stack"),
}


app = typer.Typer(
    name="bulkgrpc",
    cls=group_with(COMMANDS),
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.callback()
def root() -> None:
    """Load records in bulk: Protobuf batches over gRPC, through Kafka, into PostgreSQL, exactly once.

    To see it work, run the demo. It takes about a minute:

        bulkgrpc demo

    To run it by hand on this machine, run each of these lines in its own shell. They start the stores, a server and a
    worker:

        eval "$(bulkgrpc up)" && bulkgrpc migrate
        eval "$(bulkgrpc up)" && bulkgrpc server
        eval "$(bulkgrpc up)" && bulkgrpc worker

    Commands that need more than the client have an extra: `files` to load files, `service` for the server and workers,
    `stack` for all that runs on this machine.

    Every command has its own `--help`. Exit codes of all commands: 0 success, 1 failure (one line on stderr says why),
    2 wrong usage. Some commands have more exit codes; their help lists them.
    """


def main() -> None:
    """Run the command line."""
    app()


def server() -> None:
    """Run `bulkgrpc-server`."""
    _run("bulkgrpc.server.process")


def worker() -> None:
    """Run `bulkgrpc-worker`."""
    _run("workers.process")


def _run(module: str) -> None:
    absent = extras.missing("service")
    if absent and "--help" not in sys.argv:
        try:
            extras.refuse("service", Path(sys.argv[0]).name)
        except typer.Exit as end:
            sys.exit(end.exit_code)
    if absent:
        extras.stand_in(absent)
    sys.exit(importlib.import_module(module).main())
