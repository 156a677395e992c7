"""What an INSERT does with rows whose keys the table has, by the dataset's conflict policy."""

from __future__ import annotations

from psycopg import sql

from bulkgrpc.datasets.definition import Dataset

_DO_NOTHING = sql.SQL("ON CONFLICT DO NOTHING")


def on_conflict(dataset: Dataset) -> sql.Composable:
    """Return the ON CONFLICT clause of an INSERT into a dataset's table, by its policy.

    append: no clause; a unique index that users created rejects the row. ignore, reject: the row is not written.
    """
    if dataset.conflict_policy == "append":
        return sql.SQL("")
    return replacing(dataset) if dataset.conflict_policy == "update" else _DO_NOTHING


def replacing(dataset: Dataset) -> sql.Composable:
    """Return the ON CONFLICT clause that replaces every column outside the key."""
    others = [column.name for column in dataset.columns if column.name not in dataset.primary_key]
    if not others:
        return _DO_NOTHING
    sets = [sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in others]
    key = sql.SQL(", ").join(map(sql.Identifier, dataset.primary_key))
    return sql.SQL("ON CONFLICT ({}) DO UPDATE SET {}").format(key, sql.SQL(", ").join(sets))
