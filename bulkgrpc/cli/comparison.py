"""Compares every row of a CSV file with every row of a table, without the service's codecs.

PostgreSQL writes the table as CSV, pyarrow reads both files and sorts them by key, or by all columns if there is no
key, and all columns must be equal, nulls included.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from bulkgrpc.datasets.columns import Column
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.postgres.export import export_csv

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


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of a comparison. different: rows with the same key and different columns."""

    file_rows: int
    table_rows: int
    different: int

    @property
    def equal(self) -> bool:
        """Whether the table has every row of the file exactly once, and no other."""
        return self.file_rows == self.table_rows and self.different == 0


def compare(postgres: str, dataset: Dataset, tenant: str, path: Path) -> Comparison:
    """Compare a tenant's rows of a dataset's table with a CSV file whose empty and NA cells are nulls.

    Raises PostgresError, pa.ArrowInvalid.
    """
    columns = [column for column in dataset.columns if column.field]
    order = [(name, "ascending") for name in dataset.key or [column.name for column in columns]]
    with tempfile.TemporaryDirectory(prefix="bulkgrpc-compare-") as folder:
        exported = Path(folder) / "table.csv"
        export_csv(postgres, dataset, tenant, columns, exported)
        table = _read(exported, columns).sort_by(order)
    file = _read(path, columns).sort_by(order)
    different = _different_rows(table, file) if len(table) == len(file) else 0
    return Comparison(len(file), len(table), different)


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


def _different_rows(one: pa.Table, other: pa.Table) -> int:
    """Return the number of rows in which any column differs. Null equals only null."""
    same = pa.chunked_array([pa.array([True] * len(one), pa.bool_())])
    for name in one.column_names:
        left, right = one.column(name), other.column(name)
        both_null = pc.and_(pc.is_null(left), pc.is_null(right))
        same = pc.and_(same, pc.or_(both_null, pc.fill_null(pc.equal(left, right), fill_value=False)))
    return int(pc.sum(pc.invert(same)).as_py() or 0)
