"""The `bulkgrpc` command. A command's module is imported only when it is called: some take a second to load."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

_DATA, _SERVICE, _STACK = "Data", "Service", "Local Kafka, PostgreSQL and Valkey"
# The server and the worker parse their options themselves, `--help` included.
_PASS_THROUGH = {"context_settings": {"allow_extra_args": True, "ignore_unknown_options": True}}


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command is defined: `module:attribute` in this package, a function or a typer app of subcommands."""

    target: str
    panel: str
    options: tuple[tuple[str, Any], ...] = ()

    def load(self, name: str) -> Any:
        """Import the command."""
        module, attribute = self.target.split(":")
        found = getattr(importlib.import_module(f"bulkgrpc.cli.{module}"), attribute)
        if isinstance(found, typer.Typer):
            app = found
            app.info.rich_help_panel = self.panel
        else:
            app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
            app.command(name, rich_help_panel=self.panel, **dict(self.options))(found)
        command: Any = get_command(app)
        command.name = name
        command.rich_help_panel = self.panel
        return command


_PROCESS = (*_PASS_THROUGH.items(), ("add_help_option", False))
COMMANDS = {
    "demo": Command("demo:demo", _DATA),
    "load": Command("load:load", _DATA),
    "jobs": Command("jobs:app", _DATA),
    "datasets": Command("datasets:app", _DATA),
    "dlq": Command("dlq:app", _DATA),
    "ledger": Command("ledger:app", _DATA),
    "server": Command("service:server", _SERVICE, _PROCESS),
    "worker": Command("service:worker", _SERVICE, _PROCESS),
    "migrate": Command("service:migrate", _SERVICE),
    "doctor": Command("doctor:doctor", _SERVICE),
    "lag": Command("lag:lag", _SERVICE),
    "bench": Command("bench:app", _SERVICE),
    "tune": Command("tune:tune", _SERVICE),
    "up": Command("stack:up", _STACK),
    "down": Command("stack:down", _STACK),
    "status": Command("stack:status", _STACK),
    "stack-install": Command("stack:stack_install", _STACK),
}


class LazyGroup(TyperGroup):
    """The commands of COMMANDS, each imported when it is needed."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a command; None if there is none of this name."""
        command = COMMANDS.get(cmd_name)
        return None if command is None else command.load(cmd_name)


app = typer.Typer(
    name="bulkgrpc",
    cls=LazyGroup,
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

    Every command has its own `--help`. Exit codes of all commands: 0 success, 1 failure (one line on stderr says why),
    2 wrong usage. Some commands have more exit codes; their help lists them.
    """


def main() -> None:
    """Run the command line."""
    app()
