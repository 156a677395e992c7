"""The fault that needs more than SQL: the disk of one table is full."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.support.disk import small_disk


@contextmanager
def full_disk(postgres: str, table: str) -> Iterator[None]:
    """Move a table to a small disk, fill the disk, and clear it at the end. Needs root to mount it."""
    space = f"small_{table.rpartition('.')[2]}"[:63]
    with small_disk() as disk:
        _execute(
            postgres, f"CREATE TABLESPACE {space} LOCATION '{disk}'", f"ALTER TABLE {table} SET TABLESPACE {space}"
        )
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        try:
            yield
        finally:
            ballast.unlink()
            # What was deleted goes from the disk at a checkpoint.
            _execute(
                postgres, f"ALTER TABLE {table} SET TABLESPACE pg_default", "CHECKPOINT", f"DROP TABLESPACE {space}"
            )


def _execute(postgres: str, *statements: str) -> None:
    with psycopg.connect(postgres, autocommit=True, options="-c lock_timeout=30s") as connection:
        for statement in statements:
            connection.execute(statement.encode())
