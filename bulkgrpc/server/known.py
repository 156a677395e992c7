"""Batches that are on Kafka already: what their bytes were, so that a client which sends them again can be believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from bulkgrpc.errors import Reason, Unavailable
from bulkgrpc.model import JobKey
from bulkgrpc.redis.live import LiveJobs, RedisUnavailable
from bulkgrpc.server.storage import PostgresUnavailable, Storage

PAGE_SIZE: Final = 1024


class KnownBatches:
    """The digests of one job's batches: the last ones from Redis, the others from PostgreSQL, a page at a time.

    Asks nobody before the first batch comes again; holds a page of each. For one task.
    """

    def __init__(self, key: JobKey, storage: Storage, live: LiveJobs) -> None:
        self._key = key
        self._storage = storage
        self._live = live
        self._recent: Mapping[int, bytes] | None = None
        self._page: Mapping[int, bytes] = {}

    async def digest(self, sequence: int) -> bytes:
        """Return the digest of a batch that was accepted.

        Raises Unavailable (RESUME_NOT_READY) if nobody knows it: Redis lost it, and no worker has applied it yet or
        PostgreSQL is away.
        """
        if self._recent is None:
            self._recent = await self._from_redis()
        found = self._recent.get(sequence) or self._page.get(sequence)
        if found is None:
            self._page = await self._from_postgresql(sequence)
            found = self._page.get(sequence)
        if not found:
            raise Unavailable(
                Reason.RESUME_NOT_READY,
                f"batch {sequence} is stored, but not applied yet, so it cannot be told whether this is the same: "
                "try again shortly",
                field="batch.sequence",
                sequence=str(sequence),
            )
        return found

    async def _from_redis(self) -> Mapping[int, bytes]:
        try:
            return await self._live.digests(self._key)
        except RedisUnavailable:
            return {}

    async def _from_postgresql(self, from_sequence: int) -> Mapping[int, bytes]:
        try:
            return await self._storage.digests(self._key, from_sequence, PAGE_SIZE)
        except PostgresUnavailable:
            return {}
