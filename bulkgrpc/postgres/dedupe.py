"""What is remembered of a dataset's records: their hashes, for the dataset's window, written with the rows themselves.

Two tables a dataset, the halves, in the schema `bulk`. Hashes are added to the current half. Once all in the other one
are older than the window it is emptied and becomes the current one: what is over goes at once, never row by row. A hash
is known if it is in either, young enough. Writers of a dataset share a lock on its halves; changing halves waits for
them. So the half that is not the current one has nothing uncommitted, and two writers of the same hash, whatever their
clocks say, meet at the current half's unique index.
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
from bulkgrpc.postgres.writers.copy import Connection, copy_rows

_SQL = statements.family("dedupe")
HASHES_A_PAGE = 157
"""The most that a page of a half holds."""
PAGES_A_PIECE = 4096
Positions = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Halves:
    """A dataset's two halves as they stand for this transaction.

    other_pages: how large the one is that is not the current one, in pages of the table. now: the time under which
    hashes are added. since: those added up to then are forgotten. change_time: when the other one came out of use;
    nothing of it has changed since. filtered: whether it has a filter.
    """

    current: sql.Identifier
    other: sql.Identifier
    other_pages: int
    now: datetime
    since: datetime
    change_time: datetime
    filtered: bool

    @property
    def other_hashes(self) -> int:
        """About how many hashes are in the half that is not the current one; at least so many pages can hold."""
        return self.other_pages * HASHES_A_PAGE


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
    """Return the names of a dataset's halves. Its own may take all of the 63 characters: they have a hash of it."""
    digest = hashlib.sha256(dataset.encode()).hexdigest()[:24]
    return sql.Identifier("bulk", f"hashes_{digest}_0"), sql.Identifier("bulk", f"hashes_{digest}_1")


def create(dataset: Dataset) -> sql.Composed:
    """Return the statements that make a dataset's halves, if they are not there, and set its window."""
    half = sql.SQL("CREATE TABLE IF NOT EXISTS {} (hash uuid PRIMARY KEY, seen_time timestamptz NOT NULL)")
    window = sql.SQL(
        "INSERT INTO bulk.dedupe (dataset, window_s) VALUES ({}, {}) "
        "ON CONFLICT (dataset) DO UPDATE SET window_s = excluded.window_s"
    ).format(sql.Literal(dataset.name), sql.Literal(dataset.dedupe_window_s))
    return sql.SQL("; ").join([*(half.format(name) for name in names(dataset.name)), window])


def drop(dataset: str) -> sql.Composed:
    """Return the statements that forget a dataset for good."""
    return sql.SQL("DROP TABLE IF EXISTS {}, {}; DELETE FROM bulk.dedupe WHERE dataset = {}").format(
        *names(dataset), sql.Literal(dataset)
    )


def take(connection: Connection, dataset: str) -> Halves:
    """Keep a dataset's halves as they are until the transaction ends, and tell how that is."""
    first, second = names(dataset)
    connection.execute(sql.SQL("LOCK TABLE {}, {} IN ROW EXCLUSIVE MODE").format(first, second))
    # After the lock, in a statement of its own: what it sees is what the last change of halves left.
    values = {"dataset": dataset, "names": [_text(first), _text(second)]}
    row = connection.execute(_SQL["get_halves"], values).fetchone()
    if row is None:
        raise AssertionError(f"dataset {dataset} has halves but no window")
    half, pages, *rest = row
    halves = (first, second)
    return Halves(halves[half], halves[1 - half], pages[1 - half], *rest)


def pieces(connection: Connection, halves: Halves) -> Iterator[bytes]:
    """Return all hashes of the half that is not the current one, in pieces of up to 10 MB, one after the other."""
    statement = sql.SQL(_SQL["piece"].decode()).format(half=halves.other)
    for page in range(0, halves.other_pages, PAGES_A_PIECE):
        values = {"from_page": f"({page},0)", "to_page": f"({page + PAGES_A_PIECE},0)"}
        yield _bytes(connection, statement, values)


def known(connection: Connection, half: sql.Identifier, since: datetime, hashes: HashArray) -> Positions:
    """Return the positions of those of the hashes that were added to a half after `since`."""
    statement = sql.SQL(_SQL["known"].decode()).format(half=half)
    return _positions(connection, statement, {"hashes": hashes, "since": since})


def add(connection: Connection, halves: Halves, hashes: bytes) -> None:
    """Add hashes, sorted and each there once. Raises psycopg.errors.UniqueViolation if one is in the current half."""
    count = len(hashes) // HASH_BYTES
    seen = pa.repeat(pa.scalar(halves.now, pa.timestamp("us", "UTC")), count)
    column = pa.Array.from_buffers(pa.binary(HASH_BYTES), count, [None, pa.py_buffer(hashes)])
    copy_rows(connection, halves.current, pa.record_batch({"hash": column, "seen_time": seen}))


def merge(connection: Connection, halves: Halves, hashes: HashArray) -> Positions:
    """Add those of the hashes, sorted and each there once, that are not known in the current half; return where.

    Waits for whoever adds one of them at this moment.
    """
    statement = sql.SQL(_SQL["merge"].decode()).format(half=halves.current)
    return _positions(connection, statement, {"hashes": hashes, "now": halves.now, "since": halves.since})


def forget(connection: Connection, halves: Halves, hashes: HashArray) -> None:
    """Take back hashes that this transaction added."""
    connection.execute(sql.SQL(_SQL["forget"].decode()).format(half=halves.current), {"hashes": hashes})


def change_halves(connection: Connection) -> int:
    """Change the halves of each dataset whose other one is over, in a transaction each; return how many.

    One whose writers do not end soon is left for the next time.
    """
    changed = 0
    for (dataset,) in connection.execute(_SQL["over"]).fetchall():
        first, second = names(dataset)
        try:
            with connection.transaction():
                connection.execute(_SQL["set_lock_timeout"])
                connection.execute(sql.SQL("LOCK TABLE {}, {} IN ACCESS EXCLUSIVE MODE").format(first, second))
                row = connection.execute(_SQL["change_half"], {"dataset": dataset}).fetchone()
                if row is not None:
                    connection.execute(sql.SQL("TRUNCATE {}").format((first, second)[row[0]]))
                    changed += 1
        except (psycopg.errors.LockNotAvailable, psycopg.errors.UndefinedTable):
            continue
    return changed


def _positions(connection: Connection, statement: sql.Composed, values: Mapping[str, object]) -> Positions:
    return np.frombuffer(_bytes(connection, statement, values), ">i4").astype(np.int64)


def _bytes(connection: Connection, statement: sql.Composed, values: Mapping[str, object]) -> bytes:
    # In one value, and in binary: Python makes no object for each hash.
    row = connection.cursor(binary=True).execute(statement, values).fetchone()
    return b"" if row is None or row[0] is None else bytes(row[0])


def _text(name: sql.Identifier) -> str:
    return name.as_string(None)
