"""Whether a dataset's rows can be written into the table as it is: what the table is, against what is expected. Pure.

`fit` returns a Fit, which says what to convert on the way, or a Misfit, which says why the dataset is blocked and what
to do. A write that would change a value silently is always a Misfit.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from bulkgrpc.datasets.bound_conversions import bound_conversion
from bulkgrpc.datasets.columns import Column
from bulkgrpc.datasets.conversions import Conversion, convertible
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.table_description import Table, TableColumn
from bulkgrpc.datasets.table_fields import field_for

_KINDS = {"r": "a table", "p": "a partitioned table", "v": "a view", "m": "a materialized view", "f": "a foreign table"}
_TABLES = frozenset("rp")
_HASH_BOUND = re.compile(r"FOR VALUES WITH \(modulus (\d+), remainder \d+\)")
_DEFAULT_BOUND = "DEFAULT"


class MisfitCode(enum.StrEnum):
    """Why a dataset's table cannot be written. Stable; operators may branch on it."""

    NOT_A_TABLE = "NOT_A_TABLE"
    """A view, a foreign table or something else has the table's name, or is a partition of it."""
    UNLOGGED_TABLE = "UNLOGGED_TABLE"
    """The table, or a partition of it, is empty after a crash of PostgreSQL."""
    ROW_SECURITY = "ROW_SECURITY"
    """Row-level security applies to the role that writes."""
    RULE_ON_TABLE = "RULE_ON_TABLE"
    """A rule rewrites INSERT or UPDATE: COPY would not apply it, ON CONFLICT is not possible with it."""
    MISSING_COLUMN = "MISSING_COLUMN"
    """The table lacks a column of the dataset: it was dropped or renamed."""
    GENERATED_COLUMN = "GENERATED_COLUMN"
    """PostgreSQL computes a column that the dataset writes."""
    COLUMN_TYPE = "COLUMN_TYPE"
    """A column has a type that the dataset's values cannot be converted to exactly."""
    REQUIRED_COLUMN = "REQUIRED_COLUMN"
    """A column that the dataset does not write takes no null and has no default."""
    MISSING_KEY = "MISSING_KEY"
    """No valid unique index has the columns of the dataset's key."""
    DEFERRABLE_KEY = "DEFERRABLE_KEY"
    """The unique constraint of the key is deferrable, which ON CONFLICT does not take."""
    KEY_COLLATION = "KEY_COLLATION"
    """A key column has a collation for which different texts are equal."""
    MISSING_RIGHT = "MISSING_RIGHT"
    """The role that writes lacks a right."""
    INHERITED_TABLE = "INHERITED_TABLE"
    """Other tables inherit from the table, so that its key does not distinguish the rows that it shows."""
    MISSING_PARTITION = "MISSING_PARTITION"
    """The table is partitioned, and a partition that rows need was detached or dropped."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How a dataset's rows are written into the table.

    conversions: of the columns that need one. types: PostgreSQL's type of each of `dataset.columns` in the table, below
    domains: what converted values are staged as. row_triggers: whether a trigger may skip rows, so that PostgreSQL's
    count may be below the rows sent. triggers: whether functions of users run, which may defer constraints.
    """

    conversions: tuple[Conversion, ...]
    types: tuple[str, ...]
    row_triggers: bool
    triggers: bool


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why a dataset's rows cannot be written into the table, with the way out: one line."""

    code: MisfitCode
    reason: str


class TableMisfit(Exception):
    """The table cannot be written as it is. `str()` is the reason."""

    def __init__(self, misfit: Misfit) -> None:
        super().__init__(misfit.reason)
        self.code = misfit.code


def fit(dataset: Dataset, table: Table) -> Fit | Misfit:
    """Return how a dataset's rows are written into a table, or the first reason why they cannot be.

    Reordered columns, additional columns with a default, constraints and triggers fit: what they reject is a row.
    """
    columns = {column.name: column for column in table.columns}
    conversions: list[Conversion] = []
    for column in dataset.columns:
        conversion = conversion_of(dataset, column, columns.get(column.name))
        if isinstance(conversion, Misfit):
            # Check the kind of the table first: for a view, a missing column is not the reason to report.
            return next(_kind_misfits(dataset, table), conversion)
        if conversion.does_something:
            conversions.append(conversion)
    misfit = next(misfits_of_table(dataset, table), None)
    if misfit is not None:
        return misfit
    read = {conversion.column.name for conversion in conversions if conversion.reading is not None}
    types = (columns[name].untyped if name in read else columns[name].stored for name in _names(dataset))
    may_skip = table.row_triggers or (dataset.operation is not None and table.delete_triggers)
    return Fit(tuple(conversions), tuple(types), may_skip, table.triggers)


def misfits_of_table(dataset: Dataset, table: Table) -> Iterator[Misfit]:
    """Yield every reason why a table cannot be written that is not about the type of one of the dataset's columns."""
    for misfits in (_kind_misfits, _partition_misfits, _other_column_misfits, _key_misfits, _right_misfits):
        yield from misfits(dataset, table)


def _names(dataset: Dataset) -> list[str]:
    return [column.name for column in dataset.columns]


def unusable(dataset: Dataset, table: Table) -> Misfit | None:
    """Return why a table cannot be a dataset's, whatever columns it gets; None if it can. For a plan of a change."""
    for misfits in (_kind_misfits, _partition_misfits, _key_misfits):
        misfit = next(misfits(dataset, table), None)
        if misfit is not None:
            return misfit
    return None


def _misfit(dataset: Dataset, code: MisfitCode, what: str, way_out: str) -> Misfit:
    return Misfit(code, f"{what}: {way_out}")


def conversion_of(dataset: Dataset, column: Column, found: TableColumn | None) -> Conversion | Misfit:
    """Return how a column's values are converted for the table, or why they cannot be. found: the table's column."""
    expected = f"dataset {dataset.name} version {dataset.version} writes {column.type}"
    if found is None:
        return _misfit(
            dataset,
            MisfitCode.MISSING_COLUMN,
            f"column {column.name} is missing in the table, {expected}",
            "rename the column back or add it" if dataset.existing is None else _other_column(column),
        )
    if found.generated or found.identity == "a":
        how = "GENERATED ALWAYS AS IDENTITY" if found.identity else "a generated column"
        return _misfit(
            dataset,
            MisfitCode.GENERATED_COLUMN,
            f"column {column.name} is {how} in the table, {expected}",
            "make it GENERATED BY DEFAULT" if found.identity else "drop its expression",
        )
    if dataset.existing is None:
        conversion = convertible(column, found.base, found.typmod, is_array=found.is_array)
    else:
        conversion = bound_conversion(column, found, key=column.name in dataset.primary_key)
    if conversion is None:
        return _misfit(
            dataset,
            MisfitCode.COLUMN_TYPE,
            f"column {column.name} is {found.type} in the table, {expected}",
            "change the column back or register a version with the new type"
            if dataset.existing is None
            else _other_type(column, found),
        )
    return conversion


def _other_column(column: Column) -> str:
    if not column.field:
        return "add the column, or name another one in existing_table or provenance"
    return "name the column with (bulkgrpc.v1.column).name, or `ignore` the field"


def _other_type(column: Column, found: TableColumn) -> str:
    if not column.field:
        return f"make it {column.type}, or name another column in existing_table or provenance"
    return f"{field_for(found).advice}, or `ignore` the field"


def _kind_misfits(dataset: Dataset, table: Table) -> Iterator[Misfit]:
    if table.kind not in _TABLES:
        kind = _KINDS.get(table.kind, "no table")
        yield _misfit(dataset, MisfitCode.NOT_A_TABLE, f"{dataset.table} is {kind}", "put the table back in its place")
    if table.kind == "r" and table.persistence == "u":
        yield _misfit(
            dataset,
            MisfitCode.UNLOGGED_TABLE,
            f"table {dataset.table} is UNLOGGED, it is empty after a crash of PostgreSQL",
            f"run ALTER TABLE {dataset.table} SET LOGGED",
        )
    if table.row_security:
        yield _misfit(
            dataset,
            MisfitCode.ROW_SECURITY,
            f"row-level security of table {dataset.table} applies to role {table.role}",
            f"grant role {table.role} BYPASSRLS, or disable row-level security",
        )
    if table.inherited and dataset.existing is not None:
        yield _misfit(
            dataset,
            MisfitCode.INHERITED_TABLE,
            f"other tables inherit from {dataset.table}, and its key does not distinguish their rows",
            "bind a dataset to each of them, or make them partitions",
        )
    if table.rules:
        yield _misfit(
            dataset,
            MisfitCode.RULE_ON_TABLE,
            f"table {dataset.table} has the rule {table.rules[0]}, which COPY does not apply",
            "drop the rule, or make it a trigger",
        )
    if dataset.operation is not None and table.delete_rules:
        yield _misfit(
            dataset,
            MisfitCode.RULE_ON_TABLE,
            f"table {dataset.table} has the rule {table.delete_rules[0]}, which changes what DELETE does",
            "drop the rule, or make it a trigger",
        )


def _partition_misfits(dataset: Dataset, table: Table) -> Iterator[Misfit]:
    if table.kind != "p":
        return
    for partition in table.partitions:
        if partition.kind not in _TABLES:
            kind = _KINDS.get(partition.kind, "no table")
            yield _misfit(
                dataset,
                MisfitCode.NOT_A_TABLE,
                f"partition {partition.name} of table {dataset.table} is {kind}",
                "detach it, or put a table in its place",
            )
        elif partition.kind == "r" and partition.persistence == "u":
            yield _misfit(
                dataset,
                MisfitCode.UNLOGGED_TABLE,
                f"partition {partition.name} of table {dataset.table} is UNLOGGED, it is empty after a crash of "
                "PostgreSQL",
                f"run ALTER TABLE {partition.name} SET LOGGED",
            )
    bounds = [partition.bound for partition in table.partitions if partition.bound]
    covered = sum(Fraction(1, int(found[1])) for found in map(_HASH_BOUND.fullmatch, bounds) if found)
    if not bounds or (table.strategy == "h" and covered < 1):
        yield _misfit(
            dataset,
            MisfitCode.MISSING_PARTITION,
            f"table {dataset.table} is partitioned, and a partition is missing",
            "attach it again",
        )
    elif table.strategy == "r" and dataset.time_partitions and _DEFAULT_BOUND not in bounds:
        yield _misfit(
            dataset,
            MisfitCode.MISSING_PARTITION,
            f"table {dataset.table} is partitioned by time, and its default partition is missing",
            "attach it again",
        )


def _other_column_misfits(dataset: Dataset, table: Table) -> Iterator[Misfit]:
    ours = {column.name for column in dataset.columns}
    for column in table.columns:
        required = column.not_null and not (column.has_default or column.identity or column.generated)
        # A BEFORE ROW trigger may fill the column: only a write of a row shows whether it does.
        if required and column.name not in ours and not table.row_triggers:
            yield _misfit(
                dataset,
                MisfitCode.REQUIRED_COLUMN,
                f"column {column.name} of the table takes no null and has no default, and dataset {dataset.name} "
                f"version {dataset.version} does not write it",
                "give the column a default or drop its NOT NULL, or register a version with a field for it",
            )


def _key_misfits(dataset: Dataset, table: Table) -> Iterator[Misfit]:
    if not dataset.primary_key:
        return
    key, names = frozenset(dataset.primary_key), ", ".join(dataset.primary_key)
    keys = [found for found in table.unique_keys if found.columns == key and found.valid]
    add = f"run ALTER TABLE {dataset.table} ADD PRIMARY KEY ({names})"
    if dataset.existing is not None:
        known = "; ".join(f"({', '.join(sorted(found.columns))})" for found in table.unique_keys if found.valid)
        add = f"name the fields of one of its unique keys in `key`: {known}" if known else "add one to the table"
    if not keys:
        yield _misfit(
            dataset,
            MisfitCode.MISSING_KEY,
            f"table {dataset.table} has no valid unique index on ({names}), which policy "
            f"{dataset.conflict_policy} needs",
            add,
        )
    elif all(found.deferrable for found in keys):
        yield _misfit(
            dataset,
            MisfitCode.DEFERRABLE_KEY,
            f"the unique constraint of table {dataset.table} on ({names}) is deferrable, which policy "
            f"{dataset.conflict_policy} cannot use",
            f"drop the constraint and {add}",
        )
    for column in table.columns:
        if column.name in key and not column.deterministic:
            yield _misfit(
                dataset,
                MisfitCode.KEY_COLLATION,
                f"the collation of key column {column.name} takes different texts for equal",
                "give the column a deterministic collation",
            )


def _right_misfits(dataset: Dataset, table: Table) -> Iterator[Misfit]:
    ours, key = {column.name for column in dataset.columns}, dataset.primary_key
    columns = [column for column in table.columns if column.name in ours]
    updated = [column for column in columns if column.name not in key] if dataset.conflict_policy == "update" else []
    rights = {
        f"INSERT ON {dataset.table}": table.may_lock and all(column.may_insert for column in columns),
        f"SELECT ON {dataset.table}": all(column.may_select for column in columns if column.name in key),
        f"UPDATE ON {dataset.table}": all(column.may_update for column in updated),
        f"DELETE ON {dataset.table}": table.may_delete or dataset.operation is None,
        f"TEMPORARY ON DATABASE {table.database}": table.may_stage,
    }
    for right, granted in rights.items():
        if not granted:
            what = f"role {table.role} lacks the right {right}"
            yield _misfit(dataset, MisfitCode.MISSING_RIGHT, what, f"run GRANT {right} TO {table.role}")
