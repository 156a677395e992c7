"""The `bulkgrpc` command: one typer app, of which each module of this package gives the commands."""

from __future__ import annotations

import importlib
import importlib.util

import typer

from bulkgrpc.cli import datasets, jobs
from bulkgrpc.cli.demo import demo
from bulkgrpc.cli.load import load
from bulkgrpc.cli.processes import PASS_THROUGH, migrate, server, worker
from bulkgrpc.cli.stack import down, stack_install, status, up

_STACK, _SERVICE, _DATA = "The stores on this machine", "The service", "Data"

app = typer.Typer(
    name="bulkgrpc",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Bulk ingest over gRPC: Protobuf record batches through Kafka into PostgreSQL, exactly once. "
    "See it at work with `bulkgrpc demo`.",
)
app.command(rich_help_panel=_DATA)(demo)
app.command(rich_help_panel=_DATA)(load)
app.add_typer(jobs.app, name="jobs", rich_help_panel=_DATA)
app.add_typer(datasets.app, name="datasets", rich_help_panel=_DATA)
app.command(rich_help_panel=_SERVICE, context_settings=PASS_THROUGH, add_help_option=False)(server)
app.command(rich_help_panel=_SERVICE, context_settings=PASS_THROUGH, add_help_option=False)(worker)
app.command(rich_help_panel=_SERVICE)(migrate)
app.command(rich_help_panel=_STACK)(up)
app.command(rich_help_panel=_STACK)(down)
app.command(rich_help_panel=_STACK)(status)
app.command("stack-install", rich_help_panel=_STACK)(stack_install)
if importlib.util.find_spec("bulkgrpc.cli.bench") is not None:
    app.add_typer(importlib.import_module("bulkgrpc.cli.bench").app, name="bench", rich_help_panel=_DATA)


def main() -> None:
    """Run the command line."""
    app()
