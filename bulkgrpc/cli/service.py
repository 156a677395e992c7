"""The commands `server`, `worker` and `migrate`: the service's own processes, in the foreground."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated

import typer

from bulkgrpc.cli import console
from bulkgrpc.postgres import rights, schema
from bulkgrpc.postgres.errors import PostgresError
from bulkgrpc.postgres.outage import explained
from bulkgrpc.settings import StackSettings
from bulkgrpc.settings import load as load_settings


def server(context: typer.Context) -> None:
    """Run an ingest server in the foreground, until SIGTERM or Ctrl-C. The same as `bulkgrpc-server`.

    BULKGRPC_KAFKA, BULKGRPC_POSTGRES and BULKGRPC_REDIS are the addresses of the stores.

    For example:

        eval "$(bulkgrpc up)" && bulkgrpc migrate && bulkgrpc server --listen 127.0.0.1:50051
    """
    _run("bulkgrpc.server.process", "bulkgrpc server", context.args)


def worker(context: typer.Context) -> None:
    """Run a worker in the foreground, until SIGTERM or Ctrl-C. The same as `bulkgrpc-worker`.

    BULKGRPC_KAFKA and BULKGRPC_POSTGRES are the addresses of the stores. More workers than partitions have no work.

    For example:

        eval "$(bulkgrpc up)" && bulkgrpc worker
    """
    _run("workers.process", "bulkgrpc worker", context.args)


def migrate(
    postgres: Annotated[
        str, typer.Option(envvar="BULKGRPC_POSTGRES", help="libpq connection string of PostgreSQL.", show_default=False)
    ] = "",
    grant_to: Annotated[
        list[str] | None,
        typer.Option(help="Grant a role the rights that servers and workers need. May be repeated.", metavar="ROLE"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Create the schema `bulk` in the database, or upgrade it to this release. You can repeat it.

    Run it before the first server or worker of a release starts, as the role that is to own the schema. Servers and
    workers may run as another role: --grant-to gives it what they need.

    For example:

        eval "$(bulkgrpc up)" && bulkgrpc migrate

        bulkgrpc migrate --postgres "$OWNER_URL" --grant-to bulkgrpc_service

    With --json, the command prints one JSON object.
    """
    address = postgres or load_settings(StackSettings).postgres
    with console.failures():
        migrate_database(address)
        for role in grant_to or ():
            _grant(address, role)
    if as_json:
        console.print_json({"migrated": True})
    else:
        typer.echo("The schema is up to date.")


def migrate_database(postgres: str) -> None:
    """Upgrade a database to the newest schema. Raises CommandFailed if it is unavailable or refuses."""
    try:
        schema.migrate(postgres)
    except PostgresError as error:
        raise console.CommandFailed(f"the database was not migrated: {explained(error)}") from error
    except schema.SchemaMissing as error:
        raise console.CommandFailed(f"the database was not migrated: {error}") from error


def _grant(postgres: str, role: str) -> None:
    try:
        rights.grant(postgres, role)
    except (PostgresError, rights.RightsMissing) as error:
        raise console.CommandFailed(f"the database is migrated; {error}") from error


def _run(module: str, name: str, arguments: list[str]) -> None:
    sys.argv = [name, *arguments]
    main = importlib.import_module(module).main
    sys.exit(main())
