"""Writes only what is new: of a dataset that remembers its records, those whose bytes are not known."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import psycopg
from psycopg import sql

from bulkgrpc.datasets.hashes import HASH_BYTES
from bulkgrpc.datasets.rows import Rows
from bulkgrpc.postgres import dedupe
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.dedupe import Generations, HashArray
from bulkgrpc.postgres.filters import Filters
from bulkgrpc.postgres.writers.written import Writer, Written
from bulkgrpc.rejections import Integers, Mask

LOOKUP_CHUNKS = 16
"""Chunks of a dataset whose hashes are looked up before they are added, after one that had known ones."""


@dataclass(slots=True)
class RememberingWriter:
    """Writes the rows whose records are not known, and remembers those. Keeps which datasets had known ones lately."""

    _lookups_left: dict[str, int] = field(default_factory=dict)
    _filters: Filters = field(default_factory=Filters)

    def write(self, connection: Connection, rows: Rows, job: Integers, writer: Writer) -> Written:
        """Write by `writer` the rows whose records are new; the others are not counted. Of equal records the first is.

        rows: with hashes. A record that PostgreSQL rejects is not remembered. A later record with the same bytes is
        rejected for the same reason, as it would be alone.
        """
        if rows.hashes is None:
            raise ValueError(f"rows of {rows.dataset.name} without hashes")
        firsts, first_of = rows.hashes.firsts()
        generations = dedupe.lock(connection, rows.dataset.name)
        new = np.zeros(len(job), np.bool_)
        new[firsts[self._remember(connection, generations, rows.dataset.name, rows.hashes.bytes_of(firsts))]] = True
        if not new.any():
            return Written(np.zeros(int(job.max(initial=0)) + 1, np.int32))
        done = writer(connection, rows, job) if new.all() else writer(connection, rows.keep(new), job[new])
        if not len(done.rejected):
            return done
        rejected = done.rejected.moved(np.flatnonzero(new))
        dedupe.forget(connection, generations, HashArray(rows.hashes.bytes_of(rejected.row)))
        alike = np.flatnonzero(rejected.mask(len(job))[first_of]).astype(np.int32)
        return Written(done.written, rejected.copied(alike, first_of[alike]), done.skipped)

    def _remember(self, connection: Connection, generations: Generations, dataset: str, hashes: bytes) -> Mask:
        """Add the hashes, sorted, that are not known; return which those are."""
        left = self._lookups_left.get(dataset, 0)
        unknown = np.ones(len(hashes) // HASH_BYTES, np.bool_)
        maybe = self._filters.candidates(connection, dataset, generations, hashes)
        _clear_known(connection, generations, generations.previous, hashes, unknown, maybe)
        looked = left > 0 and _clear_known(connection, generations, generations.current, hashes, unknown, unknown)
        try:
            with connection.transaction():
                dedupe.add(connection, generations, _selected(hashes, unknown))
        except psycopg.errors.UniqueViolation:
            looked = True
            if not left:
                _clear_known(connection, generations, generations.current, hashes, unknown, unknown)
            candidates = np.flatnonzero(unknown)
            added = dedupe.merge(connection, generations, HashArray(_selected(hashes, unknown)))
            unknown[:] = False
            unknown[candidates[added]] = True
        self._lookups_left[dataset] = LOOKUP_CHUNKS if looked else max(left - 1, 0)
        return unknown


def _clear_known(
    connection: Connection,
    generations: Generations,
    table: sql.Identifier,
    hashes: bytes,
    unknown: Mask,
    candidates: Mask,
) -> bool:
    """Clear `unknown` for the candidates that a generation has; return whether there were any."""
    places = np.flatnonzero(candidates)
    if not len(places):
        return False
    known = dedupe.known(connection, table, generations.since, HashArray(_selected(hashes, candidates)))
    unknown[places[known]] = False
    return len(known) > 0


def _selected(hashes: bytes, mask: Mask) -> bytes:
    return hashes if mask.all() else np.frombuffer(hashes, f"V{HASH_BYTES}")[mask].tobytes()
