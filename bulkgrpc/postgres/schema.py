"""The `bulk` schema: bring it to the newest revision, or tell that it is not there yet."""

from __future__ import annotations

from pathlib import Path

import psycopg

MIGRATIONS = Path(__file__).parent / "migrations"


class SchemaMissing(Exception):
    """The database has not the schema that this release needs."""


def newest_revision() -> str:
    """Return the newest revision that this release knows: migrations are numbered by their files' names."""
    return max(path.name.split("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def migrate(postgres: str) -> None:
    """Bring the schema `bulk` to the newest revision; safe when several processes do it at once.

    postgres: a connection string of libpq. Raises psycopg.Error if the server cannot be reached or
    refuses.
    """
    # Only here: they take as long to load as all the rest of a server.
    import sqlalchemy  # noqa: PLC0415
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    # An URL of SQLAlchemy is not one of libpq; let psycopg read the latter.
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(postgres))
    try:
        with engine.begin() as connection:
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


def check(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Check that the schema is there and new enough.

    Raises SchemaMissing saying which command to run.
    """
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
