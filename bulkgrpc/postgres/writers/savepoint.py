"""Writes in a savepoint: what a failed write leaves behind is rolled back, and the transaction continues."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import psycopg

from bulkgrpc.postgres.connection import Connection

T = TypeVar("T")


def in_savepoint(connection: Connection, write: Callable[[], T]) -> T:
    """Call `write` in a savepoint, and once more if a partition was attached meanwhile.

    Rows without a partition of their own go to the default one. If theirs is attached at that moment, PostgreSQL
    rejects them with a check violation without a constraint's name; the second time they go to the new partition.
    """
    try:
        with connection.transaction():
            return write()
    except psycopg.errors.CheckViolation as error:
        if error.diag.constraint_name is not None:
            raise
    with connection.transaction():
        return write()
