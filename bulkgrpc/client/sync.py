"""The blocking client: the asynchronous one, run on an event loop of its own in a thread of its own.

    with BulkClient("127.0.0.1:50051", tenant="acme") as client:
        job = client.submit("weather", messages, idempotency_key="weather-2013")
        print(job.wait())

A facade and not a second implementation: what can go wrong in a submission is in one place.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

from bulkgrpc.client.client import WAIT_DEADLINE_S, AsyncBulkClient, AsyncJobHandle
from bulkgrpc.client.config import DEFAULT_TARGET, ClientConfig, Tls
from bulkgrpc.client.model import DatasetPlan, Job, Rejection, Source
from bulkgrpc.client.send_queue import OnProgress
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.model import JobOptions

Answer = TypeVar("Answer")
_END = object()


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # A daemon, so that a program that forgot to close its client still ends.
        self._thread = threading.Thread(target=self._loop.run_forever, name="bulkgrpc-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Run a coroutine there and wait for it; cancel it if the wait is interrupted (Ctrl-C)."""
        if not self._thread.is_alive():
            work.close()
            raise RuntimeError("the client is closed")
        future: Future[Answer] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def each(self, items: AsyncIterator[Answer]) -> Iterator[Answer]:
        """Give what an asynchronous iterator gives, and close it at the end, or when nobody wants more."""

        async def following() -> Answer | object:
            return await anext(items, _END)

        async def close() -> None:
            if isinstance(items, AsyncGenerator):
                await items.aclose()

        try:
            while (item := self.run(following())) is not _END:
                yield item  # type: ignore[misc]
        finally:
            # After the client is closed there is nothing left to close.
            with contextlib.suppress(RuntimeError):
                self.run(close())

    def stop(self) -> None:
        """End the loop and its thread. Safe to call twice."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class JobHandle:
    """A job of the service. Costs nothing to make; knows what it was told last."""

    def __init__(self, loop: _Loop, handle: AsyncJobHandle) -> None:
        self._loop = loop
        self._handle = handle

    @property
    def name(self) -> str:
        """The resource name, `tenants/{tenant}/jobs/{job}`."""
        return self._handle.name

    @property
    def job(self) -> Job | None:
        """The job as last told by the server; None if nothing was asked yet. No round trip."""
        return self._handle.job

    @property
    def replayed(self) -> bool:
        """Whether the submission found the job sealed already and changed nothing."""
        return self._handle.replayed

    def get(self) -> Job:
        """Ask the server for the job as it is now. See `AsyncJobHandle.get`."""
        return self._loop.run(self._handle.get())

    def wait(self, *, deadline_s: float = WAIT_DEADLINE_S, on_progress: Callable[[Job], None] | None = None) -> Job:
        """Return the job when it has ended. See `AsyncJobHandle.wait`; `on_progress` is called on another thread."""
        return self._loop.run(self._handle.wait(deadline_s=deadline_s, on_progress=on_progress))

    def watch(self) -> Iterator[Job]:
        """Give the job as it is now, then after each change, until it has ended. See `AsyncJobHandle.watch`."""
        return self._loop.each(self._handle.watch())

    def cancel(self) -> Job:
        """End the job and return it. See `AsyncJobHandle.cancel`."""
        return self._loop.run(self._handle.cancel())

    def delete(self) -> None:
        """Delete the job. See `AsyncJobHandle.delete`."""
        self._loop.run(self._handle.delete())

    def rejections(self, *, with_records: bool = False) -> Iterator[Rejection]:
        """Give the records that could not be applied. See `AsyncJobHandle.rejections`."""
        return self._loop.each(self._handle.rejections(with_records=with_records))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class BulkClient:
    """A client of one server for one tenant. A context manager; `close` does the same. Safe to use from many threads.

    target: host:port of the server. tenant: whose jobs these are; "" leaves it to the token or the server. token: a
    JSON Web Token, "" for none. tls: None speaks plain text. config: patience and sizes.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tenant: str = "",
        token: str = "",
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
        """Close the connection. Submissions under way break off; their jobs stay open. Safe to call twice."""
        with contextlib.suppress(RuntimeError):
            self._loop.run(self._client.close())
        self._loop.stop()

    def submit(
        self,
        dataset: str | Dataset,
        batches: Source,
        *,
        idempotency_key: str | None = None,
        labels: Mapping[str, str] | None = None,
        options: JobOptions = JobOptions(),
        on_progress: OnProgress | None = None,
    ) -> JobHandle:
        """Submit records as one job and return it once it is sealed: every record is then stored durably.

        As `AsyncBulkClient.submit`, which says it all. `batches` is drawn from, and `on_progress` called, on other
        threads than the caller's.
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
        """Return the handle of a job by its name, without asking the server."""
        return JobHandle(self._loop, self._client.job(name))

    def get_job(self, name: str) -> Job:
        """Return a job as it is now. See `AsyncBulkClient.get_job`."""
        return self._loop.run(self._client.get_job(name))

    def list_jobs(self) -> Iterator[Job]:
        """Give the tenant's jobs, newest first. See `AsyncBulkClient.list_jobs`."""
        return self._loop.each(self._client.list_jobs())

    def register_dataset(self, descriptors: bytes, message_type: str) -> Dataset:
        """Register a message type as a dataset. See `AsyncBulkClient.register_dataset`."""
        return self._loop.run(self._client.register_dataset(descriptors, message_type))

    def plan_dataset(self, descriptors: bytes, message_type: str) -> DatasetPlan:
        """Tell what `register_dataset` would do. See `AsyncBulkClient.plan_dataset`."""
        return self._loop.run(self._client.plan_dataset(descriptors, message_type))

    def list_dataset_versions(self, name: str) -> Iterator[Dataset]:
        """Give the versions of a dataset. See `AsyncBulkClient.list_dataset_versions`."""
        return self._loop.each(self._client.list_dataset_versions(name))

    def get_dataset(self, name: str) -> Dataset:
        """Return a dataset with its descriptors. See `AsyncBulkClient.get_dataset`."""
        return self._loop.run(self._client.get_dataset(name))

    def delete_dataset(self, name: str, *, drop_table: bool = False) -> None:
        """Delete a dataset. See `AsyncBulkClient.delete_dataset`."""
        self._loop.run(self._client.delete_dataset(name, drop_table=drop_table))

    def list_datasets(self) -> Iterator[Dataset]:
        """Give the datasets by name. See `AsyncBulkClient.list_datasets`."""
        return self._loop.each(self._client.list_datasets())
