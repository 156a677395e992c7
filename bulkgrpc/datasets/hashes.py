"""128-bit hashes of records' bytes, computed in native code: truncated BLAKE3, mixed with a salt of the tenant.

The hash must be the same in every release, and collision-resistant: of two records with the same hash, the second
counts as a duplicate. BLAKE3 is both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bulkgrpc.datasets.records import sliced
from bulkgrpc.rejections import Integers, Mask

Words = npt.NDArray[np.uint64]

HASH_BYTES = 16
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class RecordHashes:
    """Hashes of records.

    words: of shape (records, 2): the hash's first and last 8 bytes, big-endian. order: the records' positions, sorted
    by hash as its bytes sort, equal ones by position.
    """

    words: Words
    order: Integers

    @classmethod
    def of(cls, words: Words) -> RecordHashes:
        """Sort hashes."""
        order = np.argsort(words[:, 0], kind="stable")
        first, second = words[order].T
        if ((first[1:] == first[:-1]) & (second[1:] < second[:-1])).any():
            order = np.lexsort((words[:, 1], words[:, 0]))
        return cls(words, order.astype(np.int32))

    def keep(self, mask: Mask) -> RecordHashes:
        """Return the hashes for which the mask is true."""
        positions = np.cumsum(mask, dtype=np.int32) - 1
        return RecordHashes(self.words[mask], positions[self.order[mask[self.order]]])

    def take(self, order: Integers) -> RecordHashes:
        """Return the hashes in another order. order: a permutation of their positions."""
        return RecordHashes.of(self.words[order])

    def firsts(self) -> tuple[Integers, Integers]:
        """Return the positions of the first record of each hash, sorted by hash; and for each record the first's."""
        found = self.words[self.order]
        begins = np.ones(len(found), np.bool_)
        begins[1:] = (found[1:] != found[:-1]).any(axis=1)
        firsts = self.order[begins]
        first_of = np.empty_like(self.order)
        first_of[self.order] = firsts[np.cumsum(begins) - 1]
        return firsts, first_of

    def bytes_of(self, positions: npt.NDArray[np.integer[Any]]) -> bytes:
        """Return the hashes at positions, one after the other."""
        return bytes(self.words[positions].astype(">u8"))

    def column(self) -> pa.FixedSizeBinaryArray:
        """Return the hashes as a column."""
        data = self.words.astype(">u8").tobytes()
        return pa.Array.from_buffers(pa.binary(HASH_BYTES), len(self.words), [None, pa.py_buffer(data)])


class RecordHasher:
    """Hashes the records of batches. Not thread-safe. The first one loads DataFusion: 75 MB of memory, 0.3 s."""

    def __init__(self) -> None:
        # Imported here, so that only a process with such a dataset loads it.
        from datafusion import SessionConfig, SessionContext, col, functions  # noqa: PLC0415

        self._context = SessionContext(SessionConfig().with_target_partitions(1).with_batch_size(1 << 20))
        self._digest = functions.digest(col("record"), "blake3")

    def hashes(self, payloads: Sequence[bytes], tenants: Sequence[str], counts: Integers) -> Words:
        """Return the hashes of all records of serialized RecordBatches, in order, as `RecordHashes.words`.

        tenants: of each payload, whose records they are: the same bytes have another hash for another tenant. counts:
        how many records each payload has. Three native calls; about 4 M records/s.
        """
        records = sliced(payloads, counts)
        if records is None:
            raise AssertionError("payloads that were decoded cannot be sliced into their records")
        words = self._digests(records)
        salts = {tenant: hashlib.blake2b(tenant.encode(), digest_size=HASH_BYTES).digest() for tenant in set(tenants)}
        salt = np.frombuffer(b"".join(salts[tenant] for tenant in tenants), ">u8").astype(np.uint64).reshape(-1, 2)
        return np.asarray(words ^ np.repeat(salt, counts, axis=0))

    def _digests(self, records: pa.BinaryArray) -> Words:
        if not len(records):
            return np.empty((0, 2), np.uint64)
        table = self._context.create_dataframe([[pa.record_batch({"record": records})]], name="records")
        try:
            found = table.select(self._digest).collect()
        finally:
            self._context.deregister_table("records")
        pieces = [_fixed(batch.column(0)) for batch in found]
        return np.concatenate(pieces)[:, : HASH_BYTES // 8].astype(np.uint64)


def _fixed(digests: pa.BinaryArray) -> npt.NDArray[Any]:
    """Return digests of one length as rows of big-endian words."""
    data = np.frombuffer(digests.buffers()[2], ">u8", offset=digests.offset * _DIGEST_BYTES)
    return data[: len(digests) * _DIGEST_BYTES // 8].reshape(-1, _DIGEST_BYTES // 8)
