"""Chooses among the writers: direct COPY while keys are new; after a conflict the dataset's policy, for some chunks.

Of a dataset that remembers its records only the new ones are written at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import psycopg

from bulkgrpc.datasets.rows import Rows
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.writers import direct, ignore, isolate, reject, update
from bulkgrpc.postgres.writers.remember import RememberingWriter
from bulkgrpc.postgres.writers.row_errors import is_about_a_row
from bulkgrpc.postgres.writers.savepoint import in_savepoint
from bulkgrpc.postgres.writers.written import Writer, Written
from bulkgrpc.rejections import Integers

STAGED_CHUNKS = 16
"""Chunks of a dataset that are written by its policy after a conflict, before direct COPY is tried again."""

BY_POLICY: dict[str, Writer] = {"ignore": ignore.write, "update": update.write, "reject": reject.write}


@dataclass(slots=True)
class TableWriter:
    """Writes rows as their dataset's policy says. Keeps which datasets had conflicts in their last chunks."""

    _staged_left: dict[str, int] = field(default_factory=dict)
    _remembering: RememberingWriter = field(default_factory=RememberingWriter)

    def write(self, connection: Connection, rows: Rows, job: Integers) -> Written:
        """Write rows in the caller's transaction; a row that PostgreSQL rejects is reported, the others are written.

        Raises psycopg.Error if PostgreSQL fails for another reason than a row (`row_errors`); the caller rolls back.
        """
        if rows.table.num_rows == 0:
            return Written(np.zeros(int(job.max(initial=0)) + 1, np.int32))
        if rows.hashes is None:
            return self._write(connection, rows, job)
        return self._remembering.write(connection, rows, job, self._write)

    def _write(self, connection: Connection, rows: Rows, job: Integers) -> Written:
        name, by_policy = rows.dataset.name, BY_POLICY[rows.dataset.conflict_policy]
        left = self._staged_left.get(name, 0)
        try:
            if not left:
                try:
                    return in_savepoint(connection, lambda: direct.write(connection, rows, job))
                except psycopg.errors.UniqueViolation:
                    left = STAGED_CHUNKS
            self._staged_left[name] = left - 1
            return in_savepoint(connection, lambda: by_policy(connection, rows, job))
        except psycopg.Error as error:
            if not is_about_a_row(error):
                raise
        return isolate.write(connection, (direct.write, by_policy), rows, job)
