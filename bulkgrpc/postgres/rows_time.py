"""The time that a dataset's rows may take in a transaction, over all statements that write them.

PostgreSQL bounds each statement. The time starts when the table is checked (`table_contract`). Each later statement
gets the time that is left; when none is left, the rows fail as if PostgreSQL had cancelled a statement.
"""

from __future__ import annotations

import time
import weakref

import psycopg

from bulkgrpc.postgres.connection import RESTORE, Connection
from bulkgrpc.postgres.pooler import local_settings

_UNDO = "".join(f"{statement};" for statement in RESTORE)
_ends_at_s = weakref.WeakKeyDictionary[Connection, float]()


def begin(connection: Connection, seconds: float) -> None:
    """Give the rows that are written on a connection next so much time, from now on."""
    _ends_at_s[connection] = time.monotonic() + seconds


def restore(connection: Connection) -> str:
    """Return the statements that undo what triggers did to the session, and give the next ones the time that is left.

    They are to be sent with another one, so that they cost no round trip. Raises psycopg.errors.QueryCanceled if no
    time is left.
    """
    settings = local_settings(connection)
    undo = f"{_UNDO}{settings};" if settings else _UNDO
    ends_at_s = _ends_at_s.get(connection)
    if ends_at_s is None:
        return undo
    left_ms = int((ends_at_s - time.monotonic()) * 1000)
    if left_ms <= 0:
        raise psycopg.errors.QueryCanceled("canceling the statements that write the rows due to statement timeout")
    return f"{undo}SET LOCAL statement_timeout = {left_ms};"
