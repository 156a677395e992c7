"""A scratch copy of a dataset's table, in a schema of its own that is dropped afterwards, and rows to write into it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

from psycopg import sql

from bulkgrpc.bench.bare import copy_chunk
from bulkgrpc.bench.ground import Connection
from bulkgrpc.bench.model import BenchFailed
from bulkgrpc.datasets.columns import TENANT
from bulkgrpc.datasets.ddl import SCHEMA
from bulkgrpc.postgres.connection import connect

_HEADER_BYTES = 19
"""Of COPY's binary form: signature, flags, length of the extension."""
_LEDGER_STATEMENTS = 8
"""A worker's transaction has about so many beside its rows: offsets, jobs, lanes, batches, counts."""
_TRAILER = b"\xff\xff"
_POSITION = sql.Identifier("bulkgrpc_position")

_COLUMNS = """
    SELECT attname, format_type(atttypid, NULL) FROM pg_attribute
    WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum
"""
_KEY = """
    SELECT attname FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY (indkey)
    WHERE indrelid = %s::regclass AND indisprimary ORDER BY array_position(indkey, attnum)
"""
# Of the number n of a row, from 1 on: different for each, where the type has so many values.
_MADE = MappingProxyType(
    {
        "text": "'value-' || n",
        "integer": "n",
        "bigint": "n",
        "double precision": "n * 0.25",
        "real": "n * 0.25",
        "numeric": "n",
        "boolean": "n % 2 = 0",
        "bytea": "decode(md5(n::text), 'hex')",
        "uuid": "md5(n::text)::uuid",
        "jsonb": "jsonb_build_object('n', n)",
        "date": "date '2000-01-01' + n::integer",
        "time without time zone": "time '00:00' + n * interval '1 ms'",
        "interval": "n * interval '1 ms'",
        "timestamp with time zone": "timestamptz '2026-01-01 00:00Z' + n * interval '1 ms'",
    }
)


@dataclass(frozen=True, slots=True)
class Scratch:
    """The copy, empty, and a pool of rows for it. sampled: how many of them are the table's own; 0 if all are made."""

    connection: Connection
    schema: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    sampled: int

    def written_s(self, chunk_rows: int, chunks: int) -> list[float]:
        """Empty the copy, write so many chunks of so many rows, and return the time of each, its commit included.

        Each is a transaction with a COPY, and with as many small statements as a worker has for its ledger.

        The pool must have so many rows. Each chunk is sorted by key, and encoded before the clock starts.
        """
        target = sql.Identifier(self.schema, "rows")
        encoded = self._encoded(chunk_rows, chunks)
        self.connection.execute(sql.SQL("TRUNCATE {}").format(target))
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(target, _names(self.columns))
        advance = sql.SQL("UPDATE {} SET next = next + 1 WHERE number = %s").format(self._ledger)
        times = []
        for chunk in encoded:
            begun_s = time.perf_counter()
            with self.connection.transaction():
                copy_chunk(self.connection, statement, chunk)
                for number in range(_LEDGER_STATEMENTS):
                    self.connection.execute(advance, (number,))
            times.append(time.perf_counter() - begun_s)
        return times

    @property
    def _ledger(self) -> sql.Identifier:
        return sql.Identifier(self.schema, "ledger")

    def _encoded(self, chunk_rows: int, chunks: int) -> list[bytes]:
        select = sql.SQL(
            "COPY (SELECT {columns} FROM {pool} WHERE {position} <= {last} "
            "ORDER BY ({position} - 1) / {rows}, {key}) TO STDOUT (FORMAT BINARY)"
        ).format(
            columns=_names(self.columns),
            pool=sql.Identifier(self.schema, "pool"),
            position=_POSITION,
            last=chunk_rows * chunks,
            rows=chunk_rows,
            key=_names(self.key),
        )
        with self.connection.cursor() as cursor, cursor.copy(select) as copy:
            rows = [bytes(row) for row in copy]
        header, rows[0] = rows[0][:_HEADER_BYTES], rows[0][_HEADER_BYTES:]
        rows = rows[: chunk_rows * chunks]
        return [
            b"".join((header, *rows[start : start + chunk_rows], _TRAILER)) for start in range(0, len(rows), chunk_rows)
        ]


@contextmanager
def scratch(postgres: str, dataset: str, pool_rows: int) -> Iterator[Scratch]:
    """Make a copy of a dataset's table: its columns, constraints and indexes, and none of its rows.

    The pool's rows are sampled from the table; where it has too few, they come again under other tenants; where it has
    none, they are made from the columns' types. The table itself is only read. Raises BenchFailed, psycopg.Error.
    """
    schema = f"bulkgrpc_tune_{secrets.token_hex(4)}"
    try:
        with connect(postgres, "bulkgrpc-tune") as connection:
            columns, key = _columns(connection, dataset)
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
            connection.execute(
                sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)").format(
                    sql.Identifier(schema, "rows"), sql.Identifier(SCHEMA, dataset)
                )
            )
            ledger = sql.SQL("CREATE TABLE {name} (number integer PRIMARY KEY, next bigint NOT NULL DEFAULT 0)")
            connection.execute(ledger.format(name=sql.Identifier(schema, "ledger")))
            numbers = sql.SQL("INSERT INTO {} SELECT generate_series(0, {})")
            connection.execute(numbers.format(sql.Identifier(schema, "ledger"), _LEDGER_STATEMENTS - 1))
            sampled = _fill(connection, schema, dataset, columns, pool_rows)
            yield Scratch(connection, schema, tuple(columns), key, sampled)
    finally:
        # By another connection: the first may be in the middle of something, or broken.
        with connect(postgres, "bulkgrpc-tune") as last:
            last.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))


def _columns(connection: Connection, dataset: str) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """Return the columns of a dataset's table with their types, and those of its key."""
    if not connection.execute("SELECT FROM bulk.datasets WHERE dataset = %s", (dataset,)).rowcount:
        raise BenchFailed(f"there is no dataset {dataset!r}: `bulkgrpc datasets list` shows those that there are")
    table = sql.Identifier(SCHEMA, dataset).as_string(connection)
    columns: dict[str, str] = dict(connection.execute(_COLUMNS, (table,)).fetchall())
    return columns, tuple(name for (name,) in connection.execute(_KEY, (table,)))


def _fill(connection: Connection, schema: str, dataset: str, columns: Mapping[str, str], pool_rows: int) -> int:
    """Make the pool of at least `pool_rows` rows; return how many are the table's own."""
    parts = {
        "pool": sql.Identifier(schema, "pool"),
        "table": sql.Identifier(SCHEMA, dataset),
        "position": _POSITION,
        "columns": _names(tuple(columns)),
        "rows": sql.Literal(pool_rows),
    }
    found = connection.execute("SELECT reltuples FROM pg_class WHERE oid = %s::regclass", (f'{SCHEMA}."{dataset}"',))
    ((estimate,),) = found.fetchall()
    percent = sql.Literal(min(100.0, 150.0 * pool_rows / estimate) if estimate > 0 else 100.0)
    sample = (
        "CREATE UNLOGGED TABLE {pool} AS SELECT row_number() OVER () AS {position}, {columns} "
        "FROM (SELECT {columns} FROM {table} TABLESAMPLE SYSTEM ({percent}) LIMIT {rows}) AS sampled"
    )
    sampled = connection.execute(sql.SQL(sample).format(percent=percent, **parts)).rowcount
    if sampled == 0:
        make = sql.SQL("INSERT INTO {pool} SELECT n, {made} FROM generate_series(1, {rows}) AS n")
        connection.execute(make.format(made=_made(columns), **parts))
    elif sampled < pool_rows:
        again = sql.SQL(
            "INSERT INTO {pool} SELECT {position} + copy * {sampled}, {others} "
            "FROM {pool}, generate_series(1, {copies}) AS copy"
        )
        copies = -(-pool_rows // sampled) - 1
        connection.execute(again.format(sampled=sampled, copies=copies, others=_of_others(columns), **parts))
    connection.execute(sql.SQL("ANALYZE {pool}").format(**parts))
    return sampled


def _made(columns: Mapping[str, str]) -> sql.Composed:
    """Return values of each column made of the row's number."""
    made = []
    for name, kind in columns.items():
        one = _MADE.get(kind.removesuffix("[]"))
        if one is None:
            raise BenchFailed(f"the table has no rows, and for {name}, of type {kind}, none are made: load some first")
        made.append(sql.SQL(f"ARRAY[{one}, {one}]::{kind}" if kind.endswith("[]") else f"({one})::{kind}"))
    return sql.SQL(", ").join(made)


def _of_others(columns: Mapping[str, str]) -> sql.Composed:
    """Return the columns with the tenant, which is in every key, as another in each copy."""
    return sql.SQL(", ").join(
        sql.SQL("{} || '~' || copy").format(sql.Identifier(name)) if name == TENANT else sql.Identifier(name)
        for name in columns
    )


def _names(names: tuple[str, ...]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))
