"""Only what is new: of a dataset that remembers its records, those whose bytes are not known yet."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import psycopg
from psycopg import sql

from bulkgrpc.datasets.hashes import HASH_BYTES
from bulkgrpc.datasets.rows import Integers, Rows
from bulkgrpc.postgres import dedupe
from bulkgrpc.postgres.dedupe import Halves, HashArray, Mask
from bulkgrpc.postgres.filters import Filters
from bulkgrpc.postgres.writers.around import Way
from bulkgrpc.postgres.writers.copy import Connection
from bulkgrpc.postgres.writers.written import RefusedRow, Written

LOOKING_CHUNKS = 16
"""Chunks of a dataset whose hashes are looked up first, after one that had known ones."""


@dataclass(slots=True)
class NewWriter:
    """Writes the rows whose records are not known, remembers those, and knows which datasets had known ones lately."""

    _looking_left: dict[str, int] = field(default_factory=dict)
    _filters: Filters = field(default_factory=Filters)

    def write(self, connection: Connection, rows: Rows, owner: Integers, way: Way) -> Written:
        """Write by `way` the rows whose records are new; the others count for nobody. Of equal records the first is.

        rows: with hashes. A record that the table refuses is not remembered, and one of the same bytes that came after
        it in these rows is refused as it was: it would have been had it come alone.
        """
        if rows.hashes is None:
            raise ValueError(f"rows of {rows.dataset.name} without hashes")
        firsts, first_of = rows.hashes.firsts()
        halves = dedupe.take(connection, rows.dataset.name)
        new = np.zeros(len(owner), np.bool_)
        new[firsts[self._remember(connection, halves, rows.dataset.name, rows.hashes.bytes_of(firsts))]] = True
        if not new.any():
            return Written(np.zeros(int(owner.max(initial=0)) + 1, np.int32))
        done = way(connection, rows, owner) if new.all() else way(connection, rows.keep(new), owner[new])
        if not done.refused:
            return done
        positions = np.flatnonzero(new)
        refused = {int(positions[found.row]): found for found in done.refused}
        dedupe.forget(connection, halves, HashArray(rows.hashes.bytes_of(np.array(list(refused)))))
        alike = np.flatnonzero(np.isin(first_of, list(refused)))
        causes = [(int(row), refused[int(first_of[row])]) for row in alike]
        return Written(done.written, tuple(RefusedRow(row, cause.code, cause.reason) for row, cause in causes))

    def _remember(self, connection: Connection, halves: Halves, dataset: str, hashes: bytes) -> Mask:
        """Add the hashes, sorted, that are not known, and tell which those are."""
        left = self._looking_left.get(dataset, 0)
        unknown = np.ones(len(hashes) // HASH_BYTES, np.bool_)
        maybe = self._filters.candidates(connection, dataset, halves, hashes)
        _strike(connection, halves, halves.other, hashes, unknown, maybe)
        looked = left > 0 and _strike(connection, halves, halves.current, hashes, unknown, unknown)
        try:
            with connection.transaction():
                dedupe.add(connection, halves, _those(hashes, unknown))
        except psycopg.errors.UniqueViolation:
            looked = True
            if not left:
                _strike(connection, halves, halves.current, hashes, unknown, unknown)
            candidates = np.flatnonzero(unknown)
            added = dedupe.merge(connection, halves, HashArray(_those(hashes, unknown)))
            unknown[:] = False
            unknown[candidates[added]] = True
        self._looking_left[dataset] = LOOKING_CHUNKS if looked else max(left - 1, 0)
        return unknown


def _strike(
    connection: Connection, halves: Halves, half: sql.Identifier, hashes: bytes, unknown: Mask, candidates: Mask
) -> bool:
    """Take from `unknown` those of the candidates that a half knows, and tell whether that was anything."""
    places = np.flatnonzero(candidates)
    if not len(places):
        return False
    there = dedupe.known(connection, half, halves.since, HashArray(_those(hashes, candidates)))
    unknown[places[there]] = False
    return len(there) > 0


def _those(hashes: bytes, mask: Mask) -> bytes:
    return hashes if mask.all() else np.frombuffer(hashes, f"V{HASH_BYTES}")[mask].tobytes()
