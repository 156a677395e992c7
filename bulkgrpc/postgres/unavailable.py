"""Which errors of PostgreSQL mean that it is unavailable: one closed table, for servers and workers. Pure.

What a failed chunk leads to is decided in `bulkgrpc.consume.failures`, which also knows the step that failed.
"""

from __future__ import annotations

import enum
from typing import Final

import psycopg


class Meaning(enum.Enum):
    """What an error of PostgreSQL means to a call that reads or writes the schema `bulk`."""

    UNAVAILABLE = "unavailable"
    """The connection broke, or PostgreSQL does not do now what it does at other times: the call may be repeated."""
    LOCKED = "locked"
    """Another session holds a lock for longer than the call may wait: the call may be repeated."""
    OTHER = "other"
    """The statement or its values are wrong, or a table is not what it was: a repetition does not help."""


UNAVAILABLE_CLASSES: Final = {
    "08": "connection exception",
    "28": "invalid authorization specification: a password or a right to log in that an operator is changing",
    "40": "transaction rollback: serialization failure, deadlock, conflict with recovery on a standby",
    "53": "insufficient resources: disk, memory, connections",
    "57": "operator intervention: shutdown, starting up or in recovery, cancelled, database dropped",
    "58": "system error outside PostgreSQL",
    "F0": "configuration file error",
    "XX": "internal error, such as a write that a standby does not expect, or a corrupt page",
}
"""SQLSTATE classes all of whose conditions mean that PostgreSQL is unavailable."""
UNAVAILABLE_STATES: Final = {
    "25006": "read_only_sql_transaction: a standby, or a database that an operator made read-only",
    "25P03": "idle_in_transaction_session_timeout",
    "25P04": "transaction_timeout",
    "3D000": "invalid_catalog_name: the database is being replaced",
    "42501": "insufficient_privilege: a right that an operator revoked",
    "55000": "object_not_in_prerequisite_state: a lock that a standby does not grant",
    "55006": "object_in_use",
}
"""SQLSTATEs of other classes that mean the same."""
LOCKED_STATE: Final = "55P03"
READ_ONLY_STATE: Final = "25006"


def meaning_of(error: psycopg.Error) -> Meaning:
    """Return what an error means. Without a SQLSTATE, one of the connection or the pool means `UNAVAILABLE`."""
    state = error.sqlstate
    if state is None:
        broken = isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
        return Meaning.UNAVAILABLE if broken else Meaning.OTHER
    return meaning_of_state(state)


def meaning_of_state(state: str) -> Meaning:
    """Return what an error with a SQLSTATE means."""
    if state == LOCKED_STATE:
        return Meaning.LOCKED
    if state[:2] in UNAVAILABLE_CLASSES or state in UNAVAILABLE_STATES:
        return Meaning.UNAVAILABLE
    return Meaning.OTHER
