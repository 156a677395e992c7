"""PostgreSQL as the server sees it: every question has a deadline, every absence is one exception."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar

import psycopg
import structlog
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.errors import Reason, Unavailable
from bulkgrpc.model import Job, JobKey, JobSpec
from bulkgrpc.postgres.catalog import Catalog, Plan, Registered
from bulkgrpc.postgres.jobs import JobStore, PageStart
from bulkgrpc.postgres.rejections import Place
from bulkgrpc.rejections import Rejection

ON_A_STREAM_S: Final = 1.0
"""A stream waits no longer than this; it can do without."""
UNARY_S: Final = 5.0
CONNECTIONS_MAX: Final = 8
FRESH_S: Final = 3.0
"""A dataset's definition is not asked for again before this."""
REMEMBERED_MAX: Final = 10_000

_log = structlog.get_logger()
T = TypeVar("T")


class PostgresUnavailable(Exception):
    """PostgreSQL does not answer, or not in time."""


def make_pool(postgres: str) -> AsyncConnectionPool[Any]:
    """Return a pool, not opened yet, whose connections notice a dead or stopped server in seconds."""
    return AsyncConnectionPool(
        postgres,
        open=False,
        min_size=1,
        max_size=CONNECTIONS_MAX,
        timeout=ON_A_STREAM_S,
        max_waiting=1000,
        reconnect_timeout=10.0,
        check=AsyncConnectionPool.check_connection,
        kwargs={
            "autocommit": True,
            "connect_timeout": 5,
            "tcp_user_timeout": 5000,
            "application_name": "bulkgrpc-server",
            "options": "-c statement_timeout=10s -c idle_in_transaction_session_timeout=20s",
        },
    )


@dataclass(slots=True)
class _Remembered:
    registered: Registered
    asked_at_s: float


class Storage:
    """Asks the job store and the catalog. Every method raises PostgresUnavailable if there is no answer in time."""

    def __init__(self, jobs: JobStore, catalog: Catalog, clock: Callable[[], float] = time.monotonic) -> None:
        self._jobs = jobs
        self._catalog = catalog
        self._clock = clock
        self._datasets: dict[str, _Remembered] = {}
        self._asking: dict[str, asyncio.Task[Registered | None]] = {}
        self._abandoned: set[asyncio.Task[Any]] = set()

    async def open_job(
        self, spec: JobSpec, partitions: Sequence[int], create_time: datetime, *, of_deleted: bool = False
    ) -> Job:
        """See JobStore.open_job."""
        opening = self._jobs.open_job(spec, partitions, create_time, of_deleted=of_deleted)
        return await self._within(ON_A_STREAM_S, opening)

    async def seal_job(self, key: JobKey, seal_time: datetime) -> Job | None:
        """See JobStore.seal_job."""
        return await self._within(ON_A_STREAM_S, self._jobs.seal_job(key, seal_time))

    async def digests(self, key: JobKey, from_sequence: int, page_size: int) -> Mapping[int, bytes]:
        """See JobStore.digests."""
        return await self._within(ON_A_STREAM_S, self._jobs.digests(key, from_sequence, page_size))

    async def get_job(self, key: JobKey) -> Job | None:
        """See JobStore.get_job."""
        return await self._within(ON_A_STREAM_S, self._jobs.get_job(key))

    async def get_jobs(self, job_ids: Sequence[uuid.UUID]) -> Sequence[Job]:
        """See JobStore.get_jobs."""
        return await self._within(ON_A_STREAM_S, self._jobs.get_jobs(job_ids))

    async def cancel_job(self, key: JobKey) -> Job | None:
        """See JobStore.cancel_job. Without an answer it may have been done all the same; it can be asked again."""
        return await self._within(UNARY_S, self._jobs.cancel_job(key))

    async def delete_job(self, key: JobKey) -> bool:
        """See JobStore.delete_job. Without an answer it may have been done all the same."""
        return await self._within(UNARY_S, self._jobs.delete_job(key))

    async def rejections(
        self, job_id: uuid.UUID, page_size: int, after: Place, *, with_records: bool
    ) -> Sequence[tuple[Place, Rejection]]:
        """See JobStore.rejections."""
        return await self._within(UNARY_S, self._jobs.rejections(job_id, page_size, after, with_records=with_records))

    async def list_jobs(self, tenant: str, page_size: int, after: PageStart | None) -> Sequence[Job]:
        """See JobStore.list_jobs."""
        return await self._within(UNARY_S, self._jobs.list_jobs(tenant, page_size, after))

    async def register(self, dataset: Dataset) -> Registered:
        """See Catalog.register. Streams that open on this process after it use what is registered."""
        registered = await self._within(UNARY_S, self._catalog.register(dataset))
        self.forget_dataset(dataset.name)
        return registered

    async def delete_dataset(self, name: str, *, drop_table: bool) -> bool:
        """See Catalog.delete. Without an answer it may have been done all the same; it can be asked again."""
        there = await self._within(UNARY_S, self._catalog.delete(name, drop_table=drop_table))
        self.forget_dataset(name)
        return there

    def forget_dataset(self, name: str) -> None:
        """Ask for a dataset anew when it is wanted next."""
        self._datasets.pop(name, None)

    async def plan(self, dataset: Dataset) -> Plan:
        """See Catalog.plan."""
        return await self._within(UNARY_S, self._catalog.plan(dataset))

    async def versions(self, name: str, page_size: int, before: int) -> Sequence[Registered]:
        """See Catalog.versions."""
        return await self._within(UNARY_S, self._catalog.versions(name, page_size, before))

    async def list_datasets(self, page_size: int, after: str) -> Sequence[Registered]:
        """See Catalog.list."""
        return await self._within(UNARY_S, self._catalog.list(page_size, after))

    async def get_dataset(self, name: str, version: int = 0) -> Registered | None:
        """Return the newest version of a dataset, at most FRESH_S old; while PostgreSQL is away, the last one seen.

        version: one that a client speaks of: what is remembered is no answer if it is newer.
        """
        known = self._datasets.get(name)
        knows = known is not None and (not version or version <= known.registered.dataset.version)
        if known is not None and knows and self._clock() - known.asked_at_s < FRESH_S:
            return known.registered
        try:
            found = await self._ask_dataset(name)
            if found is not None and version and version > found.dataset.version:
                # The question may have been under way before the version was registered.
                found = await self._ask_dataset(name)
        except PostgresUnavailable:
            if known is None or not knows:
                raise
            return known.registered
        return found

    async def _ask_dataset(self, name: str) -> Registered | None:
        """Ask for a dataset once for all who want it now: two hundred streams may open at once."""
        asking = self._asking.get(name)
        if asking is None:
            asking = asyncio.ensure_future(self._within(ON_A_STREAM_S, self._catalog.get(name)))
            self._asking[name] = asking
            asking.add_done_callback(lambda task: self._answered(name, task))
        # Not `await asking`: who gives up must not take the answer from the others.
        await asyncio.wait({asking})
        return asking.result()

    def _answered(self, name: str, task: asyncio.Task[Registered | None]) -> None:
        del self._asking[name]
        if task.cancelled() or task.exception() is not None:
            return
        found = task.result()
        if found is None:
            self._datasets.pop(name, None)
            return
        if len(self._datasets) >= REMEMBERED_MAX:
            self._datasets.clear()
        self._datasets[name] = _Remembered(found, self._clock())

    async def _within(self, deadline_s: float, question: Coroutine[Any, Any, T]) -> T:
        # psycopg answers a cancellation only after asking the server to cancel too, which a stopped server never does:
        # wait for the answer on a task that may be left behind. The pool bounds how many there are.
        task = asyncio.ensure_future(question)
        try:
            done, _ = await asyncio.wait({task}, timeout=deadline_s)
        except asyncio.CancelledError:
            self._abandon(task)
            raise
        if not done:
            self._abandon(task)
            raise PostgresUnavailable(f"PostgreSQL did not answer within {deadline_s:g} s")
        try:
            return task.result()
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise PostgresUnavailable(f"PostgreSQL: {error}") from error

    def _abandon(self, task: asyncio.Task[Any]) -> None:
        self._abandoned.add(task)
        task.add_done_callback(self._forget)
        task.cancel()

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._abandoned.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.debug("a question to PostgreSQL that nobody waited for failed", error=str(error))


def postgres_unavailable() -> Unavailable:
    """Return the refusal of a call that cannot be answered without PostgreSQL."""
    return Unavailable(
        Reason.POSTGRES_UNAVAILABLE, "PostgreSQL does not answer, so this cannot be told now: try again in a moment"
    )
