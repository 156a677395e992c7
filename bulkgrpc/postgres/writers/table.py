"""Chooses among the writers: direct COPY while keys are new; after a conflict the dataset's policy, for some chunks.

After rows that break a constraint, such rows are looked for first, for some chunks: a chunk then costs one check and
one COPY, without a COPY that fails. Of a dataset that remembers its records only the new ones are written at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType

import numpy as np
import psycopg
import pyarrow as pa

from bulkgrpc.datasets.conversions import Conversion, convert, unfit_rows
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.rows import Rows
from bulkgrpc.datasets.table_fit import Fit
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.table_contract import TableContracts
from bulkgrpc.postgres.writers import direct, ignore, isolate, reading, reject, triggered, update
from bulkgrpc.postgres.writers.constraints import broken_constraints
from bulkgrpc.postgres.writers.remember import RememberingWriter
from bulkgrpc.postgres.writers.row_errors import is_about_a_row
from bulkgrpc.postgres.writers.savepoint import in_opened_savepoint, in_savepoint
from bulkgrpc.postgres.writers.written import Writer, Written
from bulkgrpc.rejections import Integers, RejectionBuilder, RejectionCode

CHECKED_CHUNKS = 16
"""Chunks of a dataset whose rows are checked before they are written, after one with rows that break a constraint."""
STAGED_CHUNKS = 16
"""Chunks of a dataset that are written by its policy after a conflict, before direct COPY is tried again."""

BY_POLICY: dict[str, Writer] = {
    "ignore": ignore.write,
    "update": update.write,
    "reject": reject.write,
    "append": direct.write,
}


@dataclass(slots=True)
class TableWriter:
    """Writes rows as their dataset's policy says. Keeps which datasets had broken constraints or conflicts lately."""

    contracts: TableContracts = field(default_factory=TableContracts)
    _checked_left: dict[str, int] = field(default_factory=dict)
    _staged_left: dict[str, int] = field(default_factory=dict)
    _remembering: RememberingWriter = field(default_factory=RememberingWriter)

    def write(self, connection: Connection, rows: Rows, job: Integers) -> Written:
        """Write rows in the caller's transaction; a row that PostgreSQL rejects is reported, the others are written.

        The table is locked and checked first. Raises TableMisfit if it cannot take the dataset's rows, psycopg.Error if
        PostgreSQL fails for another reason than a row (`failures.is_row_error`); the caller rolls back.
        """
        if rows.table.num_rows == 0:
            return Written(np.zeros(int(job.max(initial=0)) + 1, np.int32))
        fit = self.check(connection, rows.dataset, opens_savepoint=_is_written_first(rows.dataset))
        rows = rows.stamped(datetime.now(UTC))
        done = self._write_converted(connection, fit, rows, job)
        if fit.triggers:
            # One may have deferred constraints again.
            connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        return done

    def check(self, connection: Connection, dataset: Dataset, *, opens_savepoint: bool = False) -> Fit:
        """Lock and check a dataset's table. Raises what `TableContracts.check` does."""
        return self.contracts.check(connection, dataset, opens_savepoint=opens_savepoint)

    def _write_converted(self, connection: Connection, fit: Fit, rows: Rows, job: Integers) -> Written:
        """Write rows, with their values converted where the table's columns differ from the dataset's."""
        if not fit.conversions:
            return self._write_fitting(connection, fit, rows, job)
        found = RejectionBuilder(len(job))
        for unfit in unfit_rows(rows.table, fit.conversions):
            found.add(
                unfit.rows, RejectionCode.REJECTED_BY_TABLE, unfit.column.field or unfit.column.name, unfit.reason
            )
        write = self._read_and_write if reading.is_needed(fit.conversions) else self._convert_and_write
        return _write_others(found, rows, job, partial(write, connection, fit))

    def _read_and_write(self, connection: Connection, fit: Fit, rows: Rows, job: Integers) -> Written:
        """Let PostgreSQL read the texts of rows, and write those that it accepts."""
        read = reading.read(connection, rows, fit.conversions)
        found = RejectionBuilder(len(job))
        found.add_rows(read.rejected)
        return _write_others(found, rows, job, partial(self._convert_and_write, connection, fit, values=read.values))

    def _convert_and_write(
        self,
        connection: Connection,
        fit: Fit,
        rows: Rows,
        job: Integers,
        values: Mapping[str, pa.Array] = MappingProxyType({}),
    ) -> Written:
        """Write rows that all fit. values: of the columns that PostgreSQL read."""
        converted = _converted(rows, fit, values)
        if not any(_may_reorder(conversion, rows.dataset) for conversion in fit.conversions):
            done = self._write_fitting(connection, fit, converted, job)
            return replace(done, rejected=reject.as_sent(rows, done.rejected))
        converted, order = converted.sorted_again()
        done = self._write_fitting(connection, fit, converted, job[order])
        return Written(done.written, reject.as_sent(rows, done.rejected.at_positions(order)), done.skipped)

    def _write_fitting(self, connection: Connection, fit: Fit, rows: Rows, job: Integers) -> Written:
        writer = _write_triggered if fit.row_triggers else self._write
        if rows.hashes is None:
            return writer(connection, rows, job)
        return self._remembering.write(connection, rows, job, writer)

    def _write(self, connection: Connection, rows: Rows, job: Integers) -> Written:
        name = rows.dataset.name
        left = self._checked_left.get(name, 0)
        if not left and (done := self._write_all(connection, rows, job)) is not None:
            return done
        found = RejectionBuilder(len(job))
        found.add_rows(broken_constraints(connection, rows))
        self._checked_left[name] = CHECKED_CHUNKS if len(found) else max(left - 1, 0)
        if not left and not len(found):
            return isolate.write(connection, rows, job)
        return _write_others(found, rows, job, partial(self._write_or_isolate, connection))

    def _write_or_isolate(self, connection: Connection, rows: Rows, job: Integers) -> Written:
        done = self._write_all(connection, rows, job)
        return isolate.write(connection, rows, job) if done is None else done

    def _write_all(self, connection: Connection, rows: Rows, job: Integers) -> Written | None:
        """Write rows by direct COPY or by their policy; return None, and write nothing, if PostgreSQL rejects one."""
        name, by_policy = rows.dataset.name, BY_POLICY[rows.dataset.conflict_policy]
        left = self._staged_left.get(name, 0)
        try:
            if not left and not rows.has_deletes:
                try:
                    within = in_opened_savepoint if _is_written_first(rows.dataset) else in_savepoint
                    return within(connection, lambda: direct.write(connection, rows, job))
                except psycopg.errors.UniqueViolation:
                    if by_policy is direct.write:
                        # The index is not the dataset's: a row that conflicts is one that the table rejects.
                        return None
                    left = STAGED_CHUNKS
            self._staged_left[name] = max(left - 1, 0)
            return in_savepoint(connection, lambda: by_policy(connection, rows, job))
        except psycopg.Error as error:
            if not is_about_a_row(error):
                raise
        return None


def _is_written_first(dataset: Dataset) -> bool:
    """Return whether nothing is written between the check and the rows.

    With `dedupe_window`, hashes are; for the table of others, PostgreSQL may read texts in between.
    """
    return not dataset.dedupe_window_s and dataset.existing is None


def _may_reorder(conversion: Conversion, dataset: Dataset) -> bool:
    """Return whether values of the key that differ may be equal, or sorted otherwise, once they are converted."""
    read = conversion.reading is not None or conversion.blanks
    return read and conversion.column.name in dataset.primary_key


def _write_others(
    found: RejectionBuilder, rows: Rows, job: Integers, write: Callable[[Rows, Integers], Written]
) -> Written:
    """Write the rows that are not in `found`, and return what was done with all."""
    good = ~found.rejected
    done = write(rows.keep(good), job[good]) if good.any() else Written(np.zeros(1, np.int32))
    found.add_rows(done.rejected.moved(np.flatnonzero(good)))
    return Written(done.written, found.build(), done.skipped)


def _converted(rows: Rows, fit: Fit, values: Mapping[str, pa.Array]) -> Rows:
    """Return rows with the values and types of the table's columns, where these differ from the dataset's."""
    columns = tuple(replace(column, type=kind) for column, kind in zip(rows.dataset.columns, fit.types, strict=True))
    table = convert(rows.table, fit.conversions)
    for name, array in values.items():
        position = table.schema.get_field_index(name)
        table = table.set_column(position, pa.field(name, array.type), array)
    return replace(rows, dataset=replace(rows.dataset, columns=columns), table=table)


def _write_triggered(connection: Connection, rows: Rows, job: Integers) -> Written:
    try:
        return in_savepoint(connection, lambda: triggered.write(connection, rows, job))
    except triggered.RepeatedKeys:
        pass
    except psycopg.Error as error:
        if not is_about_a_row(error):
            raise
    # Constraints are not looked at first: a trigger may change what they are about.
    return isolate.write(connection, rows, job, triggers=True)
