"""What statements that write rows do with a row whose key is in the table."""

from __future__ import annotations

from psycopg import sql

from bulkgrpc.datasets.definition import Dataset


def clause(dataset: Dataset) -> sql.Composable:
    """Return the ON CONFLICT clause of a dataset's policy.

    append: none; a unique index that users created rejects the row.
    """
    if dataset.conflict_policy == "append":
        return sql.SQL("")
    return sql.SQL("ON CONFLICT {}").format(action(dataset))


def action(dataset: Dataset) -> sql.Composable:
    """Return what follows ON CONFLICT, by the policy of a dataset with a key."""
    return do_update(dataset) if dataset.conflict_policy == "update" else do_nothing(dataset)


def do_nothing(dataset: Dataset) -> sql.Composable:
    """Return what keeps the row in the table.

    In a table of others only the key decides: a row that breaks another unique index has another key, and is rejected.
    """
    if dataset.existing is None:
        return sql.SQL("DO NOTHING")
    return sql.SQL("({}) DO NOTHING").format(_key(dataset))


def do_update(dataset: Dataset) -> sql.Composable:
    """Return what replaces every column outside the key."""
    others = [column.name for column in dataset.columns if column.name not in dataset.primary_key]
    if not others:
        return do_nothing(dataset)
    sets = [sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in others]
    return sql.SQL("({}) DO UPDATE SET {}").format(_key(dataset), sql.SQL(", ").join(sets))


def _key(dataset: Dataset) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, dataset.primary_key))
