"""The blocking client: the asynchronous client, on its own event loop in its own thread.

    with BulkClient("127.0.0.1:50051", tenant="acme") as client:
        job = client.submit("weather", messages, idempotency_key="weather-2013")
        print(job.wait())

It is a facade, not a second implementation.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

from bulkgrpc.blocks import DatasetStatus, LedgerSnapshot
from bulkgrpc.client import fork
from bulkgrpc.client.client import WAIT_DEADLINE_S, AsyncBulkClient, AsyncJobHandle
from bulkgrpc.client.config import DEFAULT_TARGET, ClientConfig, Tls, Token
from bulkgrpc.client.model import DatasetPlan, Job, Rejection, Source
from bulkgrpc.client.operations import Discarded
from bulkgrpc.client.reverts import Reverted
from bulkgrpc.client.send_queue import OnProgress
from bulkgrpc.client.tables import ArrowTable, TableSource
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.model import JobOptions

Item = TypeVar("Item")
_END = object()


class _Loop:
    """An event loop in its own thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # A daemon thread: a program that does not close its client still exits.
        self._thread = threading.Thread(target=self._loop.run_forever, name="bulkgrpc-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Item]) -> Item:
        """Run a coroutine on the loop and wait for it. Cancel it if the wait is interrupted (Ctrl-C)."""
        if not self._thread.is_alive():
            work.close()
            fork.check()
            raise RuntimeError("the client is closed")
        future: Future[Item] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def each(self, items: AsyncIterator[Item]) -> Iterator[Item]:
        """Yield the items of an asynchronous iterator, and close it at the end or when this iterator is closed."""

        async def next_item() -> Item | object:
            return await anext(items, _END)

        async def close() -> None:
            if isinstance(items, AsyncGenerator):
                await items.aclose()

        try:
            while (item := self.run(next_item())) is not _END:
                yield item  # type: ignore[misc]
        finally:
            # If the client is closed, the iterator is closed too.
            with contextlib.suppress(RuntimeError):
                self.run(close())

    def stop(self) -> None:
        """Stop the loop and its thread. Safe to call twice."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class JobHandle:
    """A handle of a job. Creating one makes no call."""

    def __init__(self, loop: _Loop, handle: AsyncJobHandle) -> None:
        self._loop = loop
        self._handle = handle

    @property
    def name(self) -> str:
        """The resource name, `tenants/{tenant}/jobs/{job}`."""
        return self._handle.name

    @property
    def job(self) -> Job | None:
        """The job as the server last returned it; None before the first call. Makes no call."""
        return self._handle.job

    @property
    def replayed(self) -> bool:
        """Whether the job was sealed before this submission, so that nothing was sent."""
        return self._handle.replayed

    def get(self) -> Job:
        """Return the job's current state from the server. See `AsyncJobHandle.get`."""
        return self._loop.run(self._handle.get())

    def wait(self, *, deadline_s: float = WAIT_DEADLINE_S, on_progress: Callable[[Job], None] | None = None) -> Job:
        """Return the job when it has ended. See `AsyncJobHandle.wait`; `on_progress` is called on another thread."""
        return self._loop.run(self._handle.wait(deadline_s=deadline_s, on_progress=on_progress))

    def watch(self) -> Iterator[Job]:
        """Yield the job now and after each change, until it has ended. See `AsyncJobHandle.watch`."""
        return self._loop.each(self._handle.watch())

    def cancel(self) -> Job:
        """Cancel the job and return it. See `AsyncJobHandle.cancel`."""
        return self._loop.run(self._handle.cancel())

    def discard(self, *, reason: str = "") -> Job:
        """Give up the sealed job, which is blocked, and return it. See `AsyncJobHandle.discard`."""
        return self._loop.run(self._handle.discard(reason=reason))

    def delete(self) -> None:
        """Delete the job. See `AsyncJobHandle.delete`."""
        self._loop.run(self._handle.delete())

    def revert(self, *, validate_only: bool = False) -> Reverted:
        """Remove the rows that the ended job wrote. See `AsyncJobHandle.revert`."""
        return self._loop.run(self._handle.revert(validate_only=validate_only))

    def rejections(self, *, include_records: bool = False) -> Iterator[Rejection]:
        """Yield the rejected records. See `AsyncJobHandle.rejections`."""
        return self._loop.each(self._handle.rejections(include_records=include_records))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class BulkClient:
    """A client of one server for one tenant. A context manager; `close` does the same. Thread-safe.

    target: host:port of the server. tenant: "" for the tenant of the token, or the server's default. token: a JSON Web
    Token or a function that returns one, see `Token`; "" for none. tls: None for plain text. config: retries, buffers.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tenant: str = "",
        token: Token = "",
        tls: Tls | None = None,
        config: ClientConfig = ClientConfig(),  # noqa: B008 - frozen
    ) -> None:
        async def connect() -> AsyncBulkClient:
            return AsyncBulkClient(target, tenant=tenant, token=token, tls=tls, config=config)

        self._loop = _Loop()
        try:
            self._client = self._loop.run(connect())
        except BaseException:
            self._loop.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Running submissions fail; their jobs stay open. Safe to call twice."""
        with contextlib.suppress(RuntimeError):
            self._loop.run(self._client.close())
        self._loop.stop()

    def submit(
        self,
        dataset: str | Dataset,
        batches: Source | ArrowTable | TableSource,
        *,
        idempotency_key: str | None = None,
        labels: Mapping[str, str] | None = None,
        options: JobOptions = JobOptions(),
        on_progress: OnProgress | None = None,
    ) -> JobHandle:
        """Submit records as one job and return it once it is sealed: then every record is durable.

        See `AsyncBulkClient.submit`. `batches` is read and `on_progress` is called on other threads than the caller's.
        """
        handle = self._loop.run(
            self._client.submit(
                dataset,
                batches,
                idempotency_key=idempotency_key,
                labels=labels,
                options=options,
                on_progress=on_progress,
            )
        )
        return JobHandle(self._loop, handle)

    def job(self, name: str) -> JobHandle:
        """Return the handle of a job by its name. Makes no call."""
        return JobHandle(self._loop, self._client.job(name))

    def get_job(self, name: str) -> Job:
        """Return a job's current state. See `AsyncBulkClient.get_job`."""
        return self._loop.run(self._client.get_job(name))

    def list_jobs(self) -> Iterator[Job]:
        """Yield the tenant's jobs, newest first. See `AsyncBulkClient.list_jobs`."""
        return self._loop.each(self._client.list_jobs())

    def register_dataset(self, descriptors: bytes, message_type: str) -> Dataset:
        """Register a message type as a dataset. See `AsyncBulkClient.register_dataset`."""
        return self._loop.run(self._client.register_dataset(descriptors, message_type))

    def plan_dataset(self, descriptors: bytes, message_type: str) -> DatasetPlan:
        """Return what `register_dataset` would do. See `AsyncBulkClient.plan_dataset`."""
        return self._loop.run(self._client.plan_dataset(descriptors, message_type))

    def list_dataset_versions(self, name: str) -> Iterator[Dataset]:
        """Yield the versions of a dataset. See `AsyncBulkClient.list_dataset_versions`."""
        return self._loop.each(self._client.list_dataset_versions(name))

    def get_dataset(self, name: str) -> Dataset:
        """Return a dataset with its descriptors. See `AsyncBulkClient.get_dataset`."""
        return self._loop.run(self._client.get_dataset(name))

    def delete_dataset(self, name: str, *, drop_table: bool = False) -> None:
        """Delete a dataset. See `AsyncBulkClient.delete_dataset`."""
        self._loop.run(self._client.delete_dataset(name, drop_table=drop_table))

    def get_dataset_status(self, name: str) -> DatasetStatus:
        """Return whether a dataset is written now, and what is parked. See `AsyncBulkClient.get_dataset_status`."""
        return self._loop.run(self._client.get_dataset_status(name))

    def pause_dataset(self, name: str, *, reason: str = "") -> DatasetStatus:
        """Pause a dataset. See `AsyncBulkClient.pause_dataset`."""
        return self._loop.run(self._client.pause_dataset(name, reason=reason))

    def resume_dataset(self, name: str) -> DatasetStatus:
        """Resume a dataset. See `AsyncBulkClient.resume_dataset`."""
        return self._loop.run(self._client.resume_dataset(name))

    def discard_parked(self, name: str, *, validate_only: bool = False) -> Discarded:
        """Discard what is parked of a dataset. See `AsyncBulkClient.discard_parked`."""
        return self._loop.run(self._client.discard_parked(name, validate_only=validate_only))

    def get_ledger(self) -> LedgerSnapshot:
        """Return positions and parked queues. See `AsyncBulkClient.get_ledger`."""
        return self._loop.run(self._client.get_ledger())

    def list_datasets(self) -> Iterator[Dataset]:
        """Yield the datasets by name. See `AsyncBulkClient.list_datasets`."""
        return self._loop.each(self._client.list_datasets())
