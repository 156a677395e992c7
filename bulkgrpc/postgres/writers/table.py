"""The choice among the ways: straight COPY while keys are new; after a conflict the dataset's policy, for a while.

Of a dataset that remembers its records only the new ones come that far.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import psycopg

from bulkgrpc.datasets.rows import Integers, Rows
from bulkgrpc.postgres.writers import direct, ignore, reject, update
from bulkgrpc.postgres.writers.around import ROW_ERRORS, Cause, Way, attempt, write_around
from bulkgrpc.postgres.writers.copy import Connection
from bulkgrpc.postgres.writers.new import NewWriter
from bulkgrpc.postgres.writers.written import Written

STAGED_CHUNKS = 16
"""Chunks of a dataset that go by staging after a conflict, before straight COPY is tried again."""

BY_POLICY: dict[str, Way] = {"ignore": ignore.write, "update": update.write, "reject": reject.write}


@dataclass(slots=True)
class TableWriter:
    """Writes rows as their dataset's policy says. Remembers which datasets had conflicts lately."""

    _staged_left: dict[str, int] = field(default_factory=dict)
    _new: NewWriter = field(default_factory=NewWriter)

    def write(self, connection: Connection, rows: Rows, owner: Integers) -> Written:
        """Write rows in the caller's transaction; a row that the table refuses is reported, the others are written.

        Raises what PostgreSQL says if it is not about a row; the caller rolls back then.
        """
        if rows.table.num_rows == 0:
            return Written(np.zeros(int(owner.max(initial=0)) + 1, np.int32))
        if rows.hashes is None:
            return self._write(connection, rows, owner)
        return self._new.write(connection, rows, owner, self._write)

    def _write(self, connection: Connection, rows: Rows, owner: Integers) -> Written:
        name, by_policy = rows.dataset.name, BY_POLICY[rows.dataset.conflict]
        left = self._staged_left.get(name, 0)
        way = by_policy if left else direct.write
        try:
            if way is direct.write:
                try:
                    return attempt(connection, way, rows, owner)
                except psycopg.errors.UniqueViolation:
                    left, way = STAGED_CHUNKS, by_policy
            self._staged_left[name] = left - 1
            return attempt(connection, way, rows, owner)
        except ROW_ERRORS as error:
            cause = Cause.of(error, way, rows)
            return write_around(connection, (direct.write, by_policy), rows, owner, cause)
