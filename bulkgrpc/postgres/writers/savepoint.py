"""Writes in a savepoint: what a failed write leaves behind is rolled back, and the transaction continues."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

import psycopg

from bulkgrpc.postgres.connection import Connection

T = TypeVar("T")

OPEN = "SAVEPOINT bulkgrpc_rows;"
RELEASE = "RELEASE bulkgrpc_rows;"
_ROLL_BACK = "ROLLBACK TO bulkgrpc_rows"


def in_savepoint(connection: Connection, write: Callable[[], T]) -> T:
    """Call `write` in a savepoint, and once more if a partition was attached meanwhile.

    Rows without a partition of their own go to the default one. If theirs is attached at that moment, PostgreSQL
    rejects them with a check violation without a constraint's name; the second time they go to the new partition.
    """
    return _again_if_attached(partial(_in_own, connection, write))


def in_opened_savepoint(connection: Connection, write: Callable[[], T]) -> T:
    """Do what `in_savepoint` does, in the savepoint that OPEN opened; it is open afterwards, however `write` ends.

    OPEN and RELEASE are to be sent with other statements, so that they cost no round trip.
    """
    return _again_if_attached(partial(_in_opened, connection, write))


def _again_if_attached(attempt: Callable[[], T]) -> T:
    try:
        return attempt()
    except psycopg.errors.CheckViolation as error:
        if error.diag.constraint_name is not None:
            raise
    return attempt()


def _in_own(connection: Connection, write: Callable[[], T]) -> T:
    with connection.transaction():
        return write()


def _in_opened(connection: Connection, write: Callable[[], T]) -> T:
    try:
        return write()
    except psycopg.Error:
        with suppress(psycopg.Error):
            connection.execute(_ROLL_BACK)
        raise
