"""What becomes of each column of a table that a dataset is bound to, and all reasons why it does not fit. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bulkgrpc.datasets.column_fit import ColumnFit, Verdict
from bulkgrpc.datasets.conversions import Conversion
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.table_description import Table, TableColumn
from bulkgrpc.datasets.table_fit import Misfit, conversion_of, misfits_of_table


@dataclass(frozen=True, slots=True)
class TableReport:
    """columns: of the dataset in its order, then the others of the table. refusals: one line each, empty if it fits."""

    columns: tuple[ColumnFit, ...] = ()
    refusals: tuple[str, ...] = ()


def report(dataset: Dataset, table: Table) -> TableReport:
    """Return what becomes of each column of a table, and every reason why the dataset cannot be bound to it."""
    known = {column.name: column for column in table.columns}
    ours = {column.name for column in dataset.columns}
    of_table = [misfit.reason for misfit in misfits_of_table(dataset, table)]
    columns, refusals = list[ColumnFit](), list[str]()
    for column in dataset.columns:
        found = known.get(column.name)
        conversion = conversion_of(dataset, column, found)
        verdict, note = _verdict(conversion)
        if isinstance(conversion, Misfit):
            refusals.append(conversion.reason)
        type_ = "" if found is None else found.type
        columns.append(ColumnFit(column.name, column.field, column.type, type_, verdict, note))
    columns += _others(table, ours)
    return TableReport(tuple(columns), (*refusals, *of_table))


def _verdict(conversion: Conversion | Misfit) -> tuple[Verdict, str]:
    if isinstance(conversion, Misfit):
        return Verdict.REFUSED, conversion.reason
    notes = list(_notes(conversion))
    return (Verdict.CONVERTED, "; ".join(notes)) if notes else (Verdict.FITS, "")


def _notes(conversion: Conversion) -> Iterator[str]:
    """Yield what is done to the values, and which records are rejected."""
    if conversion.utc:
        yield "stored as the clock shows it in UTC"
    if conversion.bounds is not None:
        yield f"values outside {conversion.bounds[0]} to {conversion.bounds[1]} are rejected"
    elif conversion.cast is not None and not conversion.utc:
        yield "every value is stored exactly"
    if conversion.reading is not None:
        yield f"read by PostgreSQL as {conversion.reading.type}; what it does not accept is rejected"
    if conversion.limit is not None and conversion.limit.characters is not None:
        yield f"texts of more than {conversion.limit.characters} characters are rejected"
    if conversion.limit is not None and conversion.limit.bytes is not None:
        yield f"texts of more than {conversion.limit.bytes} bytes are rejected"
    if conversion.blanks:
        yield "blanks at the end are not kept"


def _others(table: Table, ours: set[str]) -> Iterator[ColumnFit]:
    for column in table.columns:
        if column.name in ours:
            continue
        source = _source(column)
        if not source and not table.row_triggers:
            note = "takes no null and has no default"
            yield ColumnFit(column.name, "", "", column.type, Verdict.REFUSED, note)
        else:
            note = source or "takes no null: a trigger has to fill it"
            yield ColumnFit(column.name, "", "", column.type, Verdict.LEFT_TO_POSTGRES, note)


def _source(column: TableColumn) -> str:
    """Return what fills a column that has no field, "" if nothing does."""
    if column.generated:
        return "generated"
    if column.identity:
        return "identity"
    if column.has_default:
        return "default"
    return "" if column.not_null else "null"
