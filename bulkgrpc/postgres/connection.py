"""Connections to PostgreSQL: deadlines against hung servers and networks, and one transaction isolation."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from bulkgrpc import limits

Connection = psycopg.Connection[tuple[Any, ...]]
"""A connection of a worker."""

CONNECT_TIMEOUT_S = 5


def conninfo(postgres: str, name: str) -> str:
    """Return the connection string with our deadlines and settings added. name: shows in pg_stat_activity."""
    options = {
        "statement_timeout": int(limits.STATEMENT_TIMEOUT_S * 1000),
        "idle_in_transaction_session_timeout": int(limits.IDLE_IN_TRANSACTION_S * 1000),
        "transaction_timeout": int(limits.CHUNK_TRANSACTION_S_MAX * 1000),
        # Both whatever the database's or the role's default is. A statement sees what was committed before it began:
        # the ledger's locks rely on that. A commit that is reported is durable.
        "default_transaction_isolation": r"read\ committed",
        "synchronous_commit": "on",
    }
    return make_conninfo(
        postgres,
        application_name=name,
        connect_timeout=CONNECT_TIMEOUT_S,
        tcp_user_timeout=int(limits.TCP_USER_TIMEOUT_S * 1000),
        keepalives_idle=5,
        keepalives_interval=2,
        keepalives_count=3,
        options=" ".join(f"-c {name}={value}" for name, value in options.items()),
    )


def connect(postgres: str, name: str) -> Connection:
    """Open a connection in autocommit mode: the code opens each transaction explicitly.

    Raises psycopg.OperationalError if the server cannot be reached within CONNECT_TIMEOUT_S.
    """
    return psycopg.connect(conninfo(postgres, name), autocommit=True)
