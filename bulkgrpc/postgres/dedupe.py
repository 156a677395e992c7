"""Remembers a dataset's records: their hashes, for the dataset's window, in the transaction that writes the rows.

Each dataset has two tables, its generations, in the schema `bulk`. Hashes are added to the current generation. Once all
hashes of the previous one are older than the window, rotation truncates it and makes it the current one: expired hashes
are never deleted row by row. A hash is known if either generation has it and it is younger than the window.

Writers of a dataset share a lock on both tables, and rotation takes it alone. So the previous generation has no
uncommitted hashes, and two writers of the same hash, whatever their clocks say, meet at the current generation's unique
index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa
from psycopg import sql
from psycopg.adapt import Dumper
from psycopg.pq import Format

from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.hashes import HASH_BYTES
from bulkgrpc.postgres import statements
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.writers.copy import copy_rows

_SQL = statements.family("dedupe")
HASHES_PER_PAGE = 157
"""The most that a page of a generation has."""
PAGES_PER_READ = 4096
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Generations:
    """A dataset's two generations of hashes; they do not rotate until the transaction ends.

    previous_pages: size of the previous table. now: time under which hashes are added. since: hashes added up to then
    have expired. rotate_time: since when the previous table has not changed. filtered: whether it has a filter.
    """

    current: sql.Identifier
    previous: sql.Identifier
    previous_pages: int
    now: datetime
    since: datetime
    rotate_time: datetime
    filtered: bool

    @property
    def previous_hashes(self) -> int:
        """An upper bound of the number of hashes in the previous table."""
        return self.previous_pages * HASHES_PER_PAGE


class HashArray(bytes):
    """Hashes, one after the other, as a parameter of PostgreSQL's type uuid[]."""


class _HashArrayDumper(Dumper):
    format = Format.BINARY
    oid = psycopg.adapters.types["uuid"].array_oid

    def dump(self, obj: HashArray) -> bytes:
        """Return the array's binary form: the header, then each element after its length."""
        elements = np.empty(len(obj) // HASH_BYTES, [("length", ">i4"), ("hash", f"V{HASH_BYTES}")])
        elements["length"] = HASH_BYTES
        elements["hash"] = np.frombuffer(obj, f"V{HASH_BYTES}")
        dimensions, nulls, first_index = 1, 0, 1
        header = [dimensions, nulls, psycopg.adapters.types["uuid"].oid, len(elements), first_index]
        return np.array(header, ">i4").tobytes() + elements.tobytes()


psycopg.adapters.register_dumper(HashArray, _HashArrayDumper)


def names(dataset: str) -> tuple[sql.Identifier, sql.Identifier]:
    """Return the names of a dataset's two tables: a hash, as the dataset's own may have all of the 63 characters."""
    digest = hashlib.sha256(dataset.encode()).hexdigest()[:24]
    return sql.Identifier("bulk", f"hashes_{digest}_0"), sql.Identifier("bulk", f"hashes_{digest}_1")


def create(dataset: Dataset) -> sql.Composed:
    """Return the statements that create a dataset's tables, if they do not exist, and set its window."""
    generation = sql.SQL("CREATE TABLE IF NOT EXISTS {} (hash uuid PRIMARY KEY, seen_time timestamptz NOT NULL)")
    window = sql.SQL(
        "INSERT INTO bulk.dedupe (dataset, window_s) VALUES ({}, {}) "
        "ON CONFLICT (dataset) DO UPDATE SET window_s = excluded.window_s"
    ).format(sql.Literal(dataset.name), sql.Literal(dataset.dedupe_window_s))
    return sql.SQL("; ").join([*(generation.format(name) for name in names(dataset.name)), window])


def drop(dataset: str) -> sql.Composed:
    """Return the statements that drop what is remembered of a dataset."""
    return sql.SQL("DROP TABLE IF EXISTS {}, {}; DELETE FROM bulk.dedupe WHERE dataset = {}").format(
        *names(dataset), sql.Literal(dataset)
    )


def lock(connection: Connection, dataset: str) -> Generations:
    """Lock a dataset's generations against rotation until the transaction ends, and return them."""
    first, second = names(dataset)
    connection.execute(sql.SQL("LOCK TABLE {}, {} IN ROW EXCLUSIVE MODE").format(first, second))
    # After the lock, in a statement of its own: it sees the last rotation.
    values = {"dataset": dataset, "names": [_text(first), _text(second)]}
    row = connection.execute(_SQL["get_generations"], values).fetchone()
    if row is None:
        raise AssertionError(f"dataset {dataset} has tables of hashes but no window")
    current, pages, *rest = row
    tables = (first, second)
    return Generations(tables[current], tables[1 - current], pages[1 - current], *rest)


def read_previous(connection: Connection, generations: Generations) -> Iterator[bytes]:
    """Yield all hashes of the previous generation, up to 10 MB at a time, one hash after the other."""
    statement = sql.SQL(_SQL["read_pages"].decode()).format(generation=generations.previous)
    for page in range(0, generations.previous_pages, PAGES_PER_READ):
        values = {"from_page": f"({page},0)", "to_page": f"({page + PAGES_PER_READ},0)"}
        yield _bytes(connection, statement, values)


def known(connection: Connection, table: sql.Identifier, since: datetime, hashes: HashArray) -> Positions:
    """Return the positions of the hashes that were added to a generation's table after `since`."""
    statement = sql.SQL(_SQL["known"].decode()).format(generation=table)
    return _positions(connection, statement, {"hashes": hashes, "since": since})


def add(connection: Connection, generations: Generations, hashes: bytes) -> None:
    """Add hashes, sorted and distinct. Raises psycopg.errors.UniqueViolation if the current generation has one."""
    count = len(hashes) // HASH_BYTES
    seen = pa.repeat(pa.scalar(generations.now, pa.timestamp("us", "UTC")), count)
    column = pa.Array.from_buffers(pa.binary(HASH_BYTES), count, [None, pa.py_buffer(hashes)])
    copy_rows(connection, generations.current, pa.record_batch({"hash": column, "seen_time": seen}))


def merge(connection: Connection, generations: Generations, hashes: HashArray) -> Positions:
    """Add the hashes, sorted and distinct, that are not known in the current generation; return their positions.

    Waits for a transaction that is adding one of them.
    """
    statement = sql.SQL(_SQL["merge"].decode()).format(generation=generations.current)
    return _positions(connection, statement, {"hashes": hashes, "now": generations.now, "since": generations.since})


def forget(connection: Connection, generations: Generations, hashes: HashArray) -> None:
    """Delete hashes that this transaction added."""
    statement = sql.SQL(_SQL["forget"].decode()).format(generation=generations.current)
    connection.execute(statement, {"hashes": hashes})


def rotate(connection: Connection) -> int:
    """Rotate the generations of each dataset whose previous one has expired, in a transaction each; return how many.

    A dataset whose writers do not end within the lock's timeout is left for the next call.
    """
    rotated = 0
    for (dataset,) in connection.execute(_SQL["expired"]).fetchall():
        first, second = names(dataset)
        try:
            with connection.transaction():
                connection.execute(_SQL["set_lock_timeout"])
                connection.execute(sql.SQL("LOCK TABLE {}, {} IN ACCESS EXCLUSIVE MODE").format(first, second))
                row = connection.execute(_SQL["rotate"], {"dataset": dataset}).fetchone()
                if row is not None:
                    connection.execute(sql.SQL("TRUNCATE {}").format((first, second)[row[0]]))
                    rotated += 1
        except psycopg.Error:
            if connection.closed:
                raise
            # Whatever the error is: the hashes of other datasets do not depend on it.
            continue
    return rotated


def _positions(connection: Connection, statement: sql.Composed, values: Mapping[str, object]) -> Positions:
    return np.frombuffer(_bytes(connection, statement, values), ">i4").astype(np.int64)


def _bytes(connection: Connection, statement: sql.Composed, values: Mapping[str, object]) -> bytes:
    # One value, in binary: no Python object per hash.
    row = connection.cursor(binary=True).execute(statement, values).fetchone()
    return b"" if row is None or row[0] is None else bytes(row[0])


def _text(name: sql.Identifier) -> str:
    return name.as_string(None)
