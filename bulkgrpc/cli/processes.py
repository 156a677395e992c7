"""The commands `server`, `worker` and `migrate`: the service's own processes, in the foreground."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated

import psycopg
import typer

from bulkgrpc.cli import console
from bulkgrpc.postgres import schema
from bulkgrpc.settings import StackSettings
from bulkgrpc.settings import load as load_settings


def server(context: typer.Context) -> None:
    """Run the ingest server in the foreground; the same as `bulkgrpc-server`.

    BULKGRPC_KAFKA, BULKGRPC_POSTGRES and BULKGRPC_REDIS say where the stores are.

        eval "$(bulkgrpc up)" && bulkgrpc migrate && bulkgrpc server --listen 127.0.0.1:50051
    """
    _run("bulkgrpc.server.process", "bulkgrpc server", context.args)


def worker(context: typer.Context) -> None:
    """Run a worker in the foreground; the same as `bulkgrpc-worker`.

    BULKGRPC_KAFKA and BULKGRPC_POSTGRES say where the stores are. Start as many as there are partitions, at most.

        eval "$(bulkgrpc up)" && bulkgrpc worker
    """
    _run("workers.process", "bulkgrpc worker", context.args)


def migrate(
    postgres: Annotated[
        str, typer.Option(envvar="BULKGRPC_POSTGRES", help="PostgreSQL connection string of libpq.", show_default=False)
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Bring the database's schema to the newest revision. Doing it again changes nothing.

    eval "$(bulkgrpc up)" && bulkgrpc migrate
    """
    with console.failures():
        to_newest_revision(postgres or load_settings(StackSettings).postgres)
    if as_json:
        console.print_json({"migrated": True})
    else:
        typer.echo("The schema is up to date.")


def to_newest_revision(postgres: str) -> None:
    """Migrate a database. Raises CommandFailed if it cannot be reached or refuses."""
    try:
        schema.migrate(postgres)
    except psycopg.Error as error:
        raise console.CommandFailed(f"the database was not migrated: {error}") from error


def _run(module: str, name: str, arguments: list[str]) -> None:
    sys.argv = [name, *arguments]
    main = importlib.import_module(module).main
    sys.exit(main())
