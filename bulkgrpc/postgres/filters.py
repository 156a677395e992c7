"""Which hashes are surely not in the half that is not the current one: it does not change, so that can be known.

A Bloom filter a dataset. What it says is not there is not; the others are looked up. So it only spares look-ups of new
records, each of which would be a walk through an index of a whole window. Housekeeping makes it after halves have
changed; workers keep it in memory. Where there is none yet, everything is looked up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt
import psycopg

from bulkgrpc.datasets.hashes import HASH_BYTES, Mask
from bulkgrpc.postgres import dedupe, statements
from bulkgrpc.postgres.dedupe import Halves
from bulkgrpc.postgres.writers.copy import Connection

_SQL = statements.family("dedupe")
BITS_A_HASH = 8
"""At least: 3 % of what is not there is looked up then; up to twice as many, as the filter's size is a power of two."""
FILTER_HASHES_MAX = 16_000_000
"""A half with more has no filter: 16 MiB in each worker, and some seconds to make."""
FILTERS_MAX = 4
"""Datasets whose filters a worker keeps, the first that it meets. None is thrown out, to be read again and again."""


class HashFilter:
    """A Bloom filter of hashes, three bits each. bits: in bytes, a power of two of them, writable if to be added to."""

    def __init__(self, bits: npt.NDArray[np.uint8]) -> None:
        self.bits = bits
        self._mask = np.uint32(len(bits) * 8 - 1)

    @classmethod
    def empty(cls, hashes: int) -> HashFilter:
        """Return a filter for up to so many hashes."""
        return cls(np.zeros(max(1 << (BITS_A_HASH * hashes - 1).bit_length(), 256) // 8, np.uint8))

    def add(self, hashes: bytes) -> None:
        """Add hashes, one after the other."""
        for place, bit in self._places(hashes):
            np.bitwise_or.at(self.bits, place, bit)

    def may_have(self, hashes: bytes) -> Mask:
        """Tell of each hash whether it may have been added; false is sure."""
        found = np.ones(len(hashes) // HASH_BYTES, np.bool_)
        for place, bit in self._places(hashes):
            found &= (self.bits[place] & bit) != 0
        return found

    def _places(self, hashes: bytes) -> Iterator[tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]]:
        # A hash is as good as random: three of its four words are three hash functions.
        words = np.frombuffer(hashes, ">u4").reshape(-1, HASH_BYTES // 4)
        for column in (1, 2, 3):
            number = words[:, column].astype(np.uint32) & self._mask
            yield number >> np.uint32(3), np.left_shift(1, number & np.uint32(7)).astype(np.uint8)


def make_filters(connection: Connection) -> int:
    """Make the filters that are missing, in a transaction each; return how many."""
    made = 0
    for (dataset,) in connection.execute(_SQL["without_filter"]).fetchall():
        try:
            with connection.transaction():
                halves = dedupe.take(connection, dataset)
                if 0 < halves.other_hashes <= FILTER_HASHES_MAX:
                    new = HashFilter.empty(halves.other_hashes)
                    for piece in dedupe.pieces(connection, halves):
                        new.add(piece)
                    connection.execute(_SQL["set_filter"], {"dataset": dataset, "filter": new.bits.tobytes()})
                    made += 1
        except psycopg.errors.UndefinedTable:
            continue  # the dataset was deleted
    return made


@dataclass(slots=True)
class Filters:
    """The filters that a worker keeps, by dataset, each with the time since which its half is as it was made of."""

    _kept: dict[str, tuple[datetime, HashFilter]] = field(default_factory=dict)

    def candidates(self, connection: Connection, dataset: str, halves: Halves, hashes: bytes) -> Mask:
        """Tell which of the hashes may be in the half that is not the current one."""
        count = len(hashes) // HASH_BYTES
        if not halves.other_hashes:
            return np.zeros(count, np.bool_)
        found = self._filter(connection, dataset, halves)
        return np.ones(count, np.bool_) if found is None else found.may_have(hashes)

    def _filter(self, connection: Connection, dataset: str, halves: Halves) -> HashFilter | None:
        change_time, found = self._kept.get(dataset, (None, None))
        if change_time == halves.change_time:
            return found
        if not halves.filtered or (found is None and len(self._kept) >= FILTERS_MAX):
            return None
        row = connection.cursor(binary=True).execute(_SQL["get_filter"], {"dataset": dataset}).fetchone()
        if row is None:
            return None
        self._kept[dataset] = (halves.change_time, HashFilter(np.frombuffer(row[0], np.uint8)))
        return self._kept[dataset][1]
