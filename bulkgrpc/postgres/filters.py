"""Bloom filters of the previous generation's hashes: they spare look-ups of hashes that it does not have.

The previous generation does not change, so its filter stays exact. Without it, each new record is one look-up in the
index of a whole window. Maintenance makes a filter after each rotation, and workers keep it in memory. While there is
none, every hash is looked up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt
import psycopg

from bulkgrpc.datasets.hashes import HASH_BYTES
from bulkgrpc.postgres import dedupe, statements
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.dedupe import Generations
from bulkgrpc.rejections import Mask

_SQL = statements.family("dedupe")
BITS_PER_HASH = 8
"""At least; less than twice as many, as a filter's size is a power of two. With 8, 3 % of new hashes are looked up."""
FILTER_HASHES_MAX = 16_000_000
"""A generation with more has no filter. The largest has 16 MiB in each worker, and takes some seconds to make."""
FILTERS_MAX = 4
"""Datasets whose filters a worker keeps: the first that it writes. None is evicted, so none is read repeatedly."""


class HashFilter:
    """A Bloom filter of hashes, three bits each. bits: a power of two bytes; writable if hashes are to be added."""

    def __init__(self, bits: npt.NDArray[np.uint8]) -> None:
        self.bits = bits
        self._mask = np.uint32(len(bits) * 8 - 1)

    @classmethod
    def empty(cls, hashes: int) -> HashFilter:
        """Return a filter for up to `hashes` hashes."""
        return cls(np.zeros(max(1 << (BITS_PER_HASH * hashes - 1).bit_length(), 256) // 8, np.uint8))

    def add(self, hashes: bytes) -> None:
        """Add hashes, one after the other."""
        for place, bit in self._places(hashes):
            np.bitwise_or.at(self.bits, place, bit)

    def may_have(self, hashes: bytes) -> Mask:
        """Return for each hash whether it may have been added; false is certain."""
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
    """Make the missing filters, in a transaction each; return how many."""
    made = 0
    for (dataset,) in connection.execute(_SQL["without_filter"]).fetchall():
        try:
            with connection.transaction():
                generations = dedupe.lock(connection, dataset)
                if 0 < generations.previous_hashes <= FILTER_HASHES_MAX:
                    new = HashFilter.empty(generations.previous_hashes)
                    for hashes in dedupe.read_previous(connection, generations):
                        new.add(hashes)
                    connection.execute(_SQL["set_filter"], {"dataset": dataset, "filter": new.bits.tobytes()})
                    made += 1
        except psycopg.errors.UndefinedTable:
            continue  # the dataset was deleted
    return made


@dataclass(slots=True)
class Filters:
    """The filters that a worker keeps, by dataset, each with the rotation that it was made after."""

    _kept: dict[str, tuple[datetime, HashFilter]] = field(default_factory=dict)

    def candidates(self, connection: Connection, dataset: str, generations: Generations, hashes: bytes) -> Mask:
        """Return which of the hashes the previous generation may have."""
        count = len(hashes) // HASH_BYTES
        if not generations.previous_hashes:
            return np.zeros(count, np.bool_)
        found = self._filter(connection, dataset, generations)
        return np.ones(count, np.bool_) if found is None else found.may_have(hashes)

    def _filter(self, connection: Connection, dataset: str, generations: Generations) -> HashFilter | None:
        rotate_time, found = self._kept.get(dataset, (None, None))
        if rotate_time == generations.rotate_time:
            return found
        if not generations.filtered or (found is None and len(self._kept) >= FILTERS_MAX):
            return None
        row = connection.cursor(binary=True).execute(_SQL["get_filter"], {"dataset": dataset}).fetchone()
        if row is None:
            return None
        self._kept[dataset] = (generations.rotate_time, HashFilter(np.frombuffer(row[0], np.uint8)))
        return self._kept[dataset][1]
