"""A scratch copy of a dataset's table, in a schema that is dropped afterwards, and rows to write into it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

from psycopg import sql

from bulkgrpc.datasets.ddl import table as table_of
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.postgres.bare_copy import copy_chunk
from bulkgrpc.postgres.catalog import get_dataset
from bulkgrpc.postgres.connection import Connection, connect

_HEADER_BYTES = 19
"""The header of the COPY BINARY format: signature, flags, length of the extension."""
_TRAILER = b"\xff\xff"
_LEDGER_STATEMENTS = 8
"""About as many statements as a worker's transaction has besides its rows: offsets, jobs, lanes, batches, counts."""
_POSITION = sql.Identifier("bulkgrpc_position")

_COLUMNS = """
    SELECT attname, format_type(atttypid, NULL) FROM pg_attribute
    WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum
"""
# Expressions of `n`, a row's number from 1. Their values differ from row to row as far as the type allows.
_GENERATED = MappingProxyType(
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


class ScratchFailed(Exception):
    """No scratch copy can be made. `str()` is one line: what is missing, and what to do."""


@dataclass(frozen=True, slots=True)
class Scratch:
    """The copy, empty, and a pool of rows for it.

    sampled: rows of the pool that come from the table; 0 if all are generated.
    """

    connection: Connection
    schema: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    sampled: int

    def write_chunks(self, chunk_rows: int, chunks: int) -> list[float]:
        """Empty the copy, write `chunks` chunks of `chunk_rows` rows, and return the seconds that each took.

        Each chunk is one transaction: a COPY, and as many small statements as a worker needs for its ledger. The commit
        counts. Rows are sorted by key and encoded before the clock starts. The pool must have enough rows.
        """
        target = sql.Identifier(self.schema, "rows")
        encoded = self._encoded(chunk_rows, chunks)
        self.connection.execute(sql.SQL("TRUNCATE {}").format(target))
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(target, _names(self.columns))
        advance = sql.SQL("UPDATE {} SET next = next + 1 WHERE number = %s").format(self._ledger)
        times_s = []
        for chunk in encoded:
            start_s = time.perf_counter()
            with self.connection.transaction():
                copy_chunk(self.connection, statement, chunk)
                for number in range(_LEDGER_STATEMENTS):
                    self.connection.execute(advance, (number,))
            times_s.append(time.perf_counter() - start_s)
        return times_s

    @property
    def _ledger(self) -> sql.Identifier:
        return sql.Identifier(self.schema, "ledger")

    def _encoded(self, chunk_rows: int, chunks: int) -> list[bytes]:
        select = sql.SQL(
            "COPY (SELECT {columns} FROM {pool} WHERE {position} <= {last} "
            "ORDER BY ({position} - 1) / {rows}{key}) TO STDOUT (FORMAT BINARY)"
        ).format(
            columns=_names(self.columns),
            pool=sql.Identifier(self.schema, "pool"),
            position=_POSITION,
            last=chunk_rows * chunks,
            rows=chunk_rows,
            key=sql.SQL("").join(sql.SQL(", {}").format(sql.Identifier(name)) for name in self.key),
        )
        with self.connection.cursor() as cursor, cursor.copy(select) as copy:
            rows = [bytes(row) for row in copy]
        header, rows[0] = rows[0][:_HEADER_BYTES], rows[0][_HEADER_BYTES:]
        rows = rows[: chunk_rows * chunks]
        return [
            b"".join((header, *rows[start : start + chunk_rows], _TRAILER)) for start in range(0, len(rows), chunk_rows)
        ]


@contextmanager
def scratch(postgres: str, name: str, pool_rows: int) -> Iterator[Scratch]:
    """Create an empty copy of a dataset's table: its columns, constraints and indexes.

    name: of the dataset. The pool has at least `pool_rows` rows. They are sampled from the table. If it has too few,
    they are repeated: with a key, under other tenants. If it has none, or rows that cannot be repeated, they are
    generated from the columns' types. The table is only read.
    Raises ScratchFailed, PostgresError.
    """
    schema = f"bulkgrpc_tune_{secrets.token_hex(4)}"
    try:
        with connect(postgres, "bulkgrpc-tune") as connection:
            dataset = _dataset(connection, name)
            columns = _columns(connection, dataset)
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
            connection.execute(
                sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)").format(
                    sql.Identifier(schema, "rows"), table_of(dataset)
                )
            )
            ledger = sql.SQL("CREATE TABLE {name} (number integer PRIMARY KEY, next bigint NOT NULL DEFAULT 0)")
            connection.execute(ledger.format(name=sql.Identifier(schema, "ledger")))
            numbers = sql.SQL("INSERT INTO {} SELECT generate_series(0, {})")
            connection.execute(numbers.format(sql.Identifier(schema, "ledger"), _LEDGER_STATEMENTS - 1))
            sampled = _fill_pool(connection, schema, dataset, columns, pool_rows)
            yield Scratch(connection, schema, tuple(columns), dataset.primary_key, sampled)
    finally:
        # On another connection: the first may be broken, or inside a transaction.
        with connect(postgres, "bulkgrpc-tune") as last:
            last.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))


def _dataset(connection: Connection, name: str) -> Dataset:
    found = get_dataset(connection, name, 0)
    if found is None:
        raise ScratchFailed(f"there is no dataset {name!r}: `bulkgrpc datasets list` lists the datasets")
    return found


def _columns(connection: Connection, dataset: Dataset) -> Mapping[str, str]:
    """Return the type of each column of a dataset's table that a COPY can write."""
    found = connection.execute(_COLUMNS, (table_of(dataset).as_string(connection),)).fetchall()
    columns: dict[str, str] = dict(found)
    return columns


def _fill_pool(
    connection: Connection, schema: str, dataset: Dataset, columns: Mapping[str, str], pool_rows: int
) -> int:
    """Create the pool with at least `pool_rows` rows; return how many come from the table."""
    parts = {
        "pool": sql.Identifier(schema, "pool"),
        "table": table_of(dataset),
        "position": _POSITION,
        "columns": _names(tuple(columns)),
        "rows": sql.Literal(pool_rows),
    }
    found = connection.execute(
        "SELECT reltuples FROM pg_class WHERE oid = %s::regclass", (table_of(dataset).as_string(None),)
    )
    ((estimate,),) = found.fetchall()
    percent = sql.Literal(min(100.0, 150.0 * pool_rows / estimate) if estimate > 0 else 100.0)
    sample = (
        "CREATE UNLOGGED TABLE {pool} AS SELECT row_number() OVER () AS {position}, {columns} "
        "FROM (SELECT {columns} FROM {table} TABLESAMPLE SYSTEM ({percent}) LIMIT {rows}) AS sampled"
    )
    sampled = connection.execute(sql.SQL(sample).format(percent=percent, **parts)).rowcount
    if sampled < pool_rows and dataset.key and not dataset.tenant_column:
        # Without a tenant, a row that is repeated has a key that is there.
        connection.execute(sql.SQL("TRUNCATE {pool}").format(**parts))
        sampled = 0
    if sampled == 0:
        generate = sql.SQL("INSERT INTO {pool} SELECT n, {values} FROM generate_series(1, {rows}) AS n")
        connection.execute(generate.format(values=_generated_values(columns), **parts))
    elif sampled < pool_rows:
        repeat = sql.SQL(
            "INSERT INTO {pool} SELECT {position} + copy * {sampled}, {repeated} "
            "FROM {pool}, generate_series(1, {copies}) AS copy"
        )
        copies = -(-pool_rows // sampled) - 1
        repeated = _under_other_tenants(columns, dataset.tenant_column)
        connection.execute(repeat.format(sampled=sampled, copies=copies, repeated=repeated, **parts))
    connection.execute(sql.SQL("ANALYZE {pool}").format(**parts))
    return sampled


def _generated_values(columns: Mapping[str, str]) -> sql.Composed:
    """Return an expression of the row's number for each column."""
    values = []
    for name, kind in columns.items():
        value = _GENERATED.get(kind.removesuffix("[]"))
        if value is None:
            raise ScratchFailed(
                f"the table has too few rows, and no values can be generated for column {name} of type {kind}: "
                "load some rows first"
            )
        values.append(sql.SQL(f"ARRAY[{value}, {value}]::{kind}" if kind.endswith("[]") else f"({value})::{kind}"))
    return sql.SQL(", ").join(values)


def _under_other_tenants(columns: Mapping[str, str], tenant_column: str) -> sql.Composed:
    """Return the columns of a repeated row: another tenant, so that no key is repeated."""
    return sql.SQL(", ").join(
        sql.SQL("{} || '~' || copy").format(sql.Identifier(name)) if name == tenant_column else sql.Identifier(name)
        for name in columns
    )


def _names(names: tuple[str, ...]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))
