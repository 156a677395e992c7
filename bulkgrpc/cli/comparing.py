"""Compares every row of a CSV file with every row of a table, by a way of its own: no codec of the service is used.

PostgreSQL writes the table as CSV, pyarrow reads both, sorted by key, and the columns must be equal, nulls included.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from psycopg import sql

from bulkgrpc.datasets.columns import Column
from bulkgrpc.datasets.ddl import table as table_name
from bulkgrpc.datasets.definition import Dataset

_TYPES = {
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "double precision": pa.float64(),
    "real": pa.float32(),
    "text": pa.string(),
    "boolean": pa.bool_(),
    "timestamp with time zone": pa.timestamp("us", "UTC"),
}
_NULLS = ["", "NA"]
_UTC_TEXT = sql.SQL("""to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS {}""")


@dataclass(frozen=True, slots=True)
class Comparison:
    """What became of a file's rows. different: rows of the same key whose columns differ."""

    file_rows: int
    table_rows: int
    different: int

    @property
    def equal(self) -> bool:
        """Whether every row of the file is in the table exactly once, and nothing else is."""
        return self.file_rows == self.table_rows and self.different == 0


def compare(connection: psycopg.Connection[Any], dataset: Dataset, tenant: str, path: Path) -> Comparison:
    """Compare a tenant's rows of a dataset's table with a CSV file whose empty and NA cells are nulls.

    Raises psycopg.Error, pa.ArrowInvalid.
    """
    columns = [column for column in dataset.columns if column.field]
    order = [(name, "ascending") for name in dataset.key]
    with tempfile.TemporaryDirectory(prefix="bulkgrpc-compare-") as folder:
        copied = Path(folder) / "table.csv"
        _copy_out(connection, dataset, tenant, columns, copied)
        ours = _read(copied, columns).sort_by(order)
    theirs = _read(path, columns).sort_by(order)
    if len(ours) != len(theirs):
        return Comparison(len(theirs), len(ours), 0)
    return Comparison(len(theirs), len(ours), _different(ours, theirs))


def _copy_out(
    connection: psycopg.Connection[Any], dataset: Dataset, tenant: str, columns: list[Column], path: Path
) -> None:
    statement = sql.SQL("COPY (SELECT {} FROM {} WHERE tenant = {}) TO STDOUT (FORMAT csv, HEADER, NULL 'NA')").format(
        sql.SQL(", ").join(_selected(column) for column in columns), table_name(dataset), sql.Literal(tenant)
    )
    with connection.cursor() as cursor, cursor.copy(statement) as copy, path.open("wb") as file:
        for block in copy:
            file.write(block)


def _selected(column: Column) -> sql.Composable:
    name = sql.Identifier(column.name)
    return _UTC_TEXT.format(name, name) if column.type == "timestamp with time zone" else name


def _read(path: Path, columns: list[Column]) -> pa.Table:
    return pyarrow.csv.read_csv(
        path,
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={column.name: _TYPES[column.type] for column in columns},
            include_columns=[column.name for column in columns],
            null_values=_NULLS,
            strings_can_be_null=True,
            true_values=["t", "true"],
            false_values=["f", "false"],
        ),
    )


def _different(ours: pa.Table, theirs: pa.Table) -> int:
    """Return in how many rows any column differs; null equals null only."""
    same = pa.chunked_array([pa.array([True] * len(ours), pa.bool_())])
    for name in ours.column_names:
        one, other = ours.column(name), theirs.column(name)
        both_null = pc.and_(pc.is_null(one), pc.is_null(other))
        same = pc.and_(same, pc.or_(both_null, pc.fill_null(pc.equal(one, other), fill_value=False)))
    return int(pc.sum(pc.invert(same)).as_py() or 0)
