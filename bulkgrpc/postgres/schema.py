"""The `bulk` schema: migrate it to the newest revision, or check its revision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psycopg

from bulkgrpc.ingest.ports import PostgresUnavailable
from bulkgrpc.postgres import rights
from bulkgrpc.postgres.connection import UNLIMITED, Connection, connect
from bulkgrpc.postgres.outage import explained
from bulkgrpc.postgres.pooler import local_settings
from bulkgrpc.postgres.unavailable import Meaning, meaning_of

MIGRATIONS = Path(__file__).parent / "migrations"


class SchemaMissing(Exception):
    """The database lacks the schema that this release needs."""


def newest_revision() -> str:
    """Return the newest revision that this release knows: migrations are numbered by their files' names."""
    return max(path.name.split("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def migrate(postgres: str) -> None:
    """Migrate the schema `bulk` to the newest revision; safe when several processes do it at the same time.

    postgres: a connection string of libpq, of the role that owns the schema or may create it. Raises psycopg.Error if
    the server cannot be reached or refuses, SchemaMissing if the database cannot have the schema.
    """
    # Imported here: they take as long to load as the rest of a server.
    import sqlalchemy  # noqa: PLC0415
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    def connected() -> Connection:
        connection = connect(postgres, "bulkgrpc-migrate", UNLIMITED)
        connection.autocommit = False
        return connection

    # A URL of SQLAlchemy is not one of libpq; psycopg parses the latter.
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=connected)
    try:
        with engine.begin() as connection:
            if settings := local_settings(connection.connection.driver_connection):
                connection.exec_driver_sql(settings.replace("%", "%%"))
            _check_encoding(connection.exec_driver_sql("SHOW server_encoding").scalar())
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('bulkgrpc.migrate'))")
            config = Config()
            config.set_main_option("script_location", str(MIGRATIONS))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except sqlalchemy.exc.DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):
            raise error.orig from error
        raise
    finally:
        engine.dispose()


def check_server(postgres: str) -> Sequence[rights.Right]:
    """Check the schema and the rights on a connection of its own. Returns as `check`.

    postgres: a connection string of libpq. Raises SchemaMissing, RightsMissing; PostgresUnavailable if there is no
    connection within CONNECT_TIMEOUT_S.
    """
    try:
        with connect(postgres, "bulkgrpc-server-check") as connection:
            return check(connection)
    except psycopg.Error as error:
        if meaning_of(error) is Meaning.OTHER:
            raise
        raise PostgresUnavailable(explained(error), error.sqlstate or "") from error


def check(connection: psycopg.Connection[tuple[object, ...]]) -> Sequence[rights.Right]:
    """Check that the schema exists and is new enough, in a database that stores every text, and the role's rights.

    Returns the rights that the role lacks and only registering a dataset needs. Raises SchemaMissing, RightsMissing,
    saying which command to run.
    """
    _check_encoding(connection.info.parameter_status("server_encoding"))
    # First: without them the revision may not be read.
    to_register = rights.check(connection)
    found = connection.execute("SELECT to_regclass('public.alembic_version')").fetchone()
    revision = None
    if found is not None and found[0] is not None:
        row = connection.execute("SELECT version_num FROM public.alembic_version").fetchone()
        revision = None if row is None else str(row[0])
    if revision is None or revision < newest_revision():
        raise SchemaMissing(
            f"the database is at revision {revision or 'none'}, this release needs {newest_revision()}: "
            "run `bulkgrpc migrate`"
        )
    return to_register


def _check_encoding(encoding: object) -> None:
    if encoding != "UTF8":
        raise SchemaMissing(
            f"the encoding of the database is {encoding}, which cannot store every text: create a database with "
            "ENCODING 'UTF8', and run `bulkgrpc migrate`"
        )
