"""Probes of a PostgreSQL server: whether it answers, and its version."""

from __future__ import annotations

import psycopg


def why_not_ready(postgres: str, timeout_s: int) -> str | None:
    """Run a query as a client does. Return None if the server answers, or else the reason.

    postgres: a libpq connection string. timeout_s: time limit for connecting.
    """
    try:
        with psycopg.connect(postgres, connect_timeout=timeout_s, autocommit=True) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error as error:
        return str(error)
    return None


def server_version(postgres: str) -> str:
    """Return the server's version, for example `18.1`. Raises PostgresError."""
    with psycopg.connect(postgres) as connection:
        found = connection.execute("SHOW server_version").fetchone()
    return str(found[0]) if found else "unknown"
