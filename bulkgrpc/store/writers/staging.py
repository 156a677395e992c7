"""The staging table: one a session and dataset, of the dataset's columns and each row's position and owner."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql

from bulkgrpc.datasets.ddl import table
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.rows import Integers, Rows
from bulkgrpc.store.writers.copy import Connection, copy_rows

Mask = npt.NDArray[np.bool_]
ROW = sql.Identifier("bulkgrpc_row")
OWNER = sql.Identifier("bulkgrpc_owner")


def stage(connection: Connection, rows: Rows, owner: Integers, chosen: Mask) -> sql.Identifier:
    """COPY the chosen rows into the session's staging table, with their positions in `rows`, and return its name.

    It is empty again at the end of the transaction, or after `clear`.
    """
    name = _name(rows.dataset)
    connection.execute(_create(rows.dataset, name))
    kept = rows.keep(chosen).table
    positions = np.flatnonzero(chosen).astype(np.int32)
    kept = kept.append_column(_text(ROW), pa.array(positions)).append_column(_text(OWNER), pa.array(owner[chosen]))
    copy_rows(connection, name, kept)
    return name


def clear(connection: Connection, name: sql.Identifier) -> None:
    """Empty the staging table: the next write of this transaction finds it so."""
    connection.execute(sql.SQL("TRUNCATE {}").format(name))


def first_of_equal_keys(rows: Rows) -> Mask:
    """Return a mask of the rows, sorted by key, that are the first of their key."""
    first = np.ones(rows.table.num_rows, dtype=np.bool_)
    first[1:] = ~_same_as_before(rows)
    return first


def last_of_equal_keys(rows: Rows) -> Mask:
    """Return a mask of the rows, sorted by key, that are the last of their key."""
    last = np.ones(rows.table.num_rows, dtype=np.bool_)
    last[:-1] = ~_same_as_before(rows)
    return last


def counts_by_owner(found: list[tuple[int, int]], owner: Integers) -> Integers:
    """Return counts by job number from pairs of number and count."""
    counts = np.zeros(int(owner.max(initial=0)) + 1, np.int32)
    for number, count in found:
        counts[number] = count
    return counts


def clauses(dataset: Dataset, staging: sql.Identifier) -> dict[str, sql.Composable]:
    """Return the parts that the statements of all ways share: table, columns, key, staging, row, owner."""
    return {
        "table": table(dataset),
        "columns": sql.SQL(", ").join(sql.Identifier(column.name) for column in dataset.columns),
        "key": sql.SQL(", ").join(map(sql.Identifier, dataset.primary_key)),
        "staging": staging,
        "row": ROW,
        "owner": OWNER,
    }


def _same_as_before(rows: Rows) -> Mask:
    """Return for each row but the first whether it has the key of the one before."""
    same = np.ones(max(rows.table.num_rows - 1, 0), dtype=np.bool_)
    for name in rows.dataset.primary_key:
        values = rows.table.column(name)
        same &= pc.equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
    return same


def _name(dataset: Dataset) -> sql.Identifier:
    # A table's name may take all of the 63 characters: the staging table's is a hash of it.
    digest = hashlib.sha256(f"{dataset.name}/{dataset.version}".encode()).hexdigest()[:24]
    return sql.Identifier("pg_temp", f"bulkgrpc_{digest}")


def _create(dataset: Dataset, name: sql.Identifier) -> sql.Composed:
    # One a session, kept and emptied: a temporary table a chunk would bloat the system catalogs.
    columns = [sql.SQL("{} {}").format(sql.Identifier(c.name), sql.SQL(c.type)) for c in dataset.columns]
    columns += [sql.SQL("{} integer").format(extra) for extra in (ROW, OWNER)]
    return sql.SQL("CREATE TEMPORARY TABLE IF NOT EXISTS {} ({}) ON COMMIT DELETE ROWS").format(
        name, sql.SQL(", ").join(columns)
    )


def _text(identifier: sql.Identifier) -> str:
    return identifier.as_string(None).strip('"')
