"""Digests of batches that were accepted before, so that a batch sent again is compared with what is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from bulkgrpc.errors import Reason, Unavailable
from bulkgrpc.ingest.ports import JobStore, LiveJobs, PostgresUnavailable, RedisUnavailable
from bulkgrpc.model import JobKey

PAGE_SIZE: Final = 1024


class AcceptedDigests:
    """The digests of one job's batches: the last ones from Redis, earlier ones from PostgreSQL, a page at a time.

    Reads nothing before the first batch is sent again; keeps one page of each. For one task.
    """

    def __init__(self, key: JobKey, store: JobStore, live_jobs: LiveJobs) -> None:
        self._key = key
        self._store = store
        self._live_jobs = live_jobs
        self._recent: Mapping[int, bytes] | None = None
        self._page: Mapping[int, bytes] = {}

    async def digest(self, sequence: int) -> bytes:
        """Return the digest of a batch that was accepted.

        Raises Unavailable (RESUME_NOT_READY) if neither store knows it: Redis lost it, and no worker has applied it yet
        or PostgreSQL is unavailable.
        """
        if self._recent is None:
            self._recent = await self._from_redis()
        found = self._recent.get(sequence) or self._page.get(sequence)
        if found is None:
            self._page = await self._from_postgres(sequence)
            found = self._page.get(sequence)
        if not found:
            raise Unavailable(
                Reason.RESUME_NOT_READY,
                f"batch {sequence} is stored but not applied yet, so it cannot be compared with the one sent now: "
                "retry shortly",
                field="batch.sequence",
                sequence=str(sequence),
            )
        return found

    async def _from_redis(self) -> Mapping[int, bytes]:
        try:
            return await self._live_jobs.digests(self._key)
        except RedisUnavailable:
            return {}

    async def _from_postgres(self, from_sequence: int) -> Mapping[int, bytes]:
        try:
            return await self._store.digests(self._key, from_sequence, PAGE_SIZE)
        except PostgresUnavailable:
            return {}
