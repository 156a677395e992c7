"""The asynchronous client: submit record batches, follow jobs, register datasets.

async with AsyncBulkClient("127.0.0.1:50051", tenant="acme") as client:
    job = await client.submit("weather", messages, idempotency_key="weather-2013")
    print(await job.wait())
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Self

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import Message

from bulkgrpc.blocks import DatasetStatus, LedgerSnapshot
from bulkgrpc.client import model
from bulkgrpc.client.config import DEFAULT_TARGET, ClientConfig, Tls, Token
from bulkgrpc.client.connection import Connection
from bulkgrpc.client.errors import BulkError, NotEnded, WrongInput
from bulkgrpc.client.model import DatasetPlan, Job, Rejection, Source
from bulkgrpc.client.operations import Discarded, discarded_of, ledger_of, status_of
from bulkgrpc.client.packing import Packer
from bulkgrpc.client.reverts import Reverted, revert
from bulkgrpc.client.send_queue import OnProgress, SendQueue
from bulkgrpc.client.send_window import SendWindow
from bulkgrpc.client.source_reader import read_source
from bulkgrpc.client.submission import Header, SourceFailed, Submission, check
from bulkgrpc.client.tables import ArrowTable, TableSource, open_table
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.model import JobOptions
from bulkgrpc.v1 import datasets_pb2, jobs_pb2, ledger_pb2

WAIT_DEADLINE_S = 300.0
"""Seconds within which the service promises to end a sealed job."""
_FIRST_POLL_S = 0.05
_POLL_GROWTH = 1.5
_POLL_S_MAX = 2.0
_WATCH_FROM_S = 0.25
"""From this pause on, WatchJob replaces polling: the server checks as often."""
_PAGE_SIZE = 200
_REJECTIONS_PAGE_SIZE = 1000


class AsyncJobHandle:
    """A handle of a job. Creating one makes no call."""

    def __init__(self, client: AsyncBulkClient, name: str, job: Job | None = None, *, replayed: bool = False) -> None:
        self._client = client
        self._name = name
        self._job = job
        self._replayed = replayed

    @property
    def name(self) -> str:
        """The resource name, `tenants/{tenant}/jobs/{job}`."""
        return self._name

    @property
    def job(self) -> Job | None:
        """The job as the server last returned it; None before the first call. Makes no call."""
        return self._job

    @property
    def replayed(self) -> bool:
        """Whether the job was sealed before this submission, so that nothing was sent."""
        return self._replayed

    async def get(self) -> Job:
        """Return the job's current state from the server. Raises BulkError."""
        self._job = await self._client.get_job(self._name)
        return self._job

    async def wait(
        self, *, deadline_s: float = WAIT_DEADLINE_S, on_progress: Callable[[Job], None] | None = None
    ) -> Job:
        """Return the job when it has ended.

        Polls at growing intervals at first, then watches. If watching fails, polls at least every 2 s.
        on_progress: called with each response. Raises NotEnded after `deadline_s`; the job continues. Raises BulkError.
        """
        now_s = asyncio.get_running_loop().time
        ends_at_s, pause_s, watched = now_s() + deadline_s, _FIRST_POLL_S, False
        while True:
            job = await self.get()
            if on_progress is not None:
                on_progress(job)
            if job.ended:
                return job
            if now_s() >= ends_at_s:
                raise NotEnded(self._name, job.state.name, deadline_s, job.block)
            if pause_s > _WATCH_FROM_S and not watched:
                watched = True
                await self._watch_until(ends_at_s, on_progress)
                continue
            await asyncio.sleep(min(pause_s, max(0.0, ends_at_s - now_s())))
            pause_s = min(pause_s * _POLL_GROWTH, _POLL_S_MAX)

    async def watch(self) -> AsyncGenerator[Job, None]:
        """Yield the job now and after each change, until it has ended. Raises BulkError."""
        last: Job | None = None
        connection = self._client._connection
        responses = connection.stream(connection.jobs.WatchJob, jobs_pb2.WatchJobRequest(name=self._name))
        async with aclosing(responses):
            response: jobs_pb2.WatchJobResponse
            async for response in responses:
                self._job = model.job_of(response.job)
                if self._job != last:
                    last = self._job
                    yield last

    async def cancel(self) -> Job:
        """Cancel the job and return it. Nothing more of it is written.

        Raises Refused with JOB_ENDED if it has ended in another state, or another BulkError.
        """
        connection = self._client._connection
        return await self._changed(connection.jobs.CancelJob, jobs_pb2.CancelJobRequest(name=self._name))

    async def discard(self, *, reason: str = "") -> Job:
        """Give up the sealed job, which a message of its own blocks; return it. What is not applied is rejected.

        It ends as FAILED soon. reason: for those who look at the job. Raises Refused with JOB_ENDED or JOB_NOT_BLOCKED,
        or another BulkError.
        """
        request = jobs_pb2.DiscardJobRequest(name=self._name, reason=reason)
        return await self._changed(self._client._connection.jobs.DiscardJob, request)

    async def delete(self) -> None:
        """Delete the job with its rejections and its idempotency key. Rows in the table stay.

        Raises Refused with JOB_NOT_ENDED if it has not ended, or another BulkError.
        """
        connection = self._client._connection
        await connection.call(connection.jobs.DeleteJob, jobs_pb2.DeleteJobRequest(name=self._name))

    async def revert(self, *, validate_only: bool = False) -> Reverted:
        """Remove the rows that the ended job wrote, if its dataset has `provenance`. Idempotent; the job stays.

        validate_only: only count them. Raises Refused with JOB_NOT_ENDED, JOB_NOT_REVERTIBLE, or another BulkError:
        what was removed before stays removed, and another call removes the rest.
        """
        return await revert(self._client._connection, self._name, validate_only=validate_only)

    async def rejections(self, *, include_records: bool = False) -> AsyncGenerator[Rejection, None]:
        """Yield the rejected records in the order of the job. Each page is one call.

        include_records: include the records' bytes. Raises BulkError.
        """
        token, connection = "", self._client._connection
        while True:
            request = jobs_pb2.ListRejectionsRequest(
                parent=self._name, page_size=_REJECTIONS_PAGE_SIZE, page_token=token, include_records=include_records
            )
            response: jobs_pb2.ListRejectionsResponse = await connection.call(connection.jobs.ListRejections, request)
            for rejection in response.rejections:
                yield model.rejection_of(rejection)
            token = response.next_page_token
            if not token:
                return

    async def _changed(self, rpc: Callable[..., Any], request: Message) -> Job:
        response = await self._client._connection.call(rpc, request)
        self._job = model.job_of(response.job)
        return self._job

    async def _watch_until(self, ends_at_s: float, on_progress: Callable[[Job], None] | None) -> None:
        """Watch until the job has ended, the deadline has passed, or watching fails. The next poll has the reason."""
        try:
            async with asyncio.timeout_at(ends_at_s), aclosing(self.watch()) as jobs:
                async for job in jobs:
                    if on_progress is not None:
                        on_progress(job)
        except (TimeoutError, BulkError):
            return

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r})"


class AsyncBulkClient:
    """A client of one server for one tenant, on one event loop. An async context manager; `close` does the same.

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
        self._config = config
        self._connection = Connection(target, tenant, token, tls, config)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Running submissions fail; their jobs stay open."""
        await self._connection.close()

    async def submit(
        self,
        dataset: str | Dataset,
        batches: Source | ArrowTable | TableSource,
        *,
        idempotency_key: str | None = None,
        labels: Mapping[str, str] | None = None,
        options: JobOptions = JobOptions(),
        on_progress: OnProgress | None = None,
    ) -> AsyncJobHandle:
        """Submit records as one job and return it once it is sealed: then every record is durable.

        dataset: its name, with or without `datasets/`. A name alone means the newest version. Append `@2` for records
        of version 2, for example if your code was generated from that version. A `Dataset` that `register_dataset` or
        `get_dataset` returned means its version. batches: an iterable, plain or asynchronous, of messages (packed by
        `batch_records` and `batch_bytes`), of encoded batches, or of `Batch` values; or a table (`__arrow_c_stream__`)
        of pyarrow, polars, pandas, DuckDB and others, also as a `TableSource`. A table or plain iterable is read on its
        own thread. At most `buffer_bytes_max` bytes are read ahead of the acknowledgements. idempotency_key: 1 to 128
        printable ASCII characters; by default a random key. Submissions with the same key are the same job: a repeated
        one resumes after the last acknowledged batch. labels: at most 16. options: must not change for the same key.
        on_progress: called on the event loop for each batch sent or acknowledged; must not block.

        A broken stream is opened again. Raises Refused; Unreachable; GaveUp after `retry_deadline_s` without progress;
        WrongInput for an item that is not a record; any exception of `batches`. The job, if it was opened, then stays
        open and can be resumed with its key.
        """
        name, version = model.name_and_version(dataset)
        header = Header(model.resource(name), idempotency_key or uuid.uuid4().hex, dict(labels or {}), options, version)
        check(header)
        if isinstance(batches, ArrowTable | TableSource):
            batches, version = await open_table(batches, dataset, self.get_dataset, self._config)
            header = replace(header, dataset_version=version)
        queue = SendQueue(SendWindow(self._config.buffer_bytes_max, self._config.buffer_batches_max), on_progress)
        submission = Submission(self._connection, header, queue)

        async def check_type(message_type: str) -> None:
            if message_type != (expected := (await self.get_dataset(name)).message_type):
                raise WrongInput(f"the records of dataset {name} are messages of {expected}, not {message_type}")

        reading = asyncio.create_task(read_source(batches, Packer(self._config), queue, check_type))
        try:
            sealed = model.job_of(await submission.run())
        except SourceFailed as failed:
            raise failed.failure from None
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        return AsyncJobHandle(self, sealed.name, sealed, replayed=submission.replayed)

    def job(self, name: str) -> AsyncJobHandle:
        """Return the handle of a job by its name. Makes no call."""
        return AsyncJobHandle(self, name)

    async def get_job(self, name: str) -> Job:
        """Return a job's current state. Raises Refused with JOB_NOT_FOUND, or another BulkError."""
        response: jobs_pb2.GetJobResponse = await self._connection.call(
            self._connection.jobs.GetJob, jobs_pb2.GetJobRequest(name=name)
        )
        return model.job_of(response.job)

    async def list_jobs(self) -> AsyncIterator[Job]:
        """Yield the tenant's jobs, newest first. Each page is one call. Raises BulkError."""
        token = ""
        while True:
            response: jobs_pb2.ListJobsResponse = await self._connection.call(
                self._connection.jobs.ListJobs, jobs_pb2.ListJobsRequest(page_size=_PAGE_SIZE, page_token=token)
            )
            for job in response.jobs:
                yield model.job_of(job)
            token = response.next_page_token
            if not token:
                return

    async def register_dataset(self, descriptors: bytes, message_type: str) -> Dataset:
        """Register a message type as a dataset, create or change its table, and return the dataset. Idempotent.

        descriptors: a serialized FileDescriptorSet with the message's file and its imports. If the dataset exists with
        another definition, this becomes its next version. Raises Refused; the message names the field that cannot be a
        column, or (DATASET_INCOMPATIBLE) that cannot follow the existing version, and what to do.
        """
        request = datasets_pb2.RegisterDatasetRequest(
            descriptors=FileDescriptorSet.FromString(descriptors), message_type=message_type
        )
        response: datasets_pb2.RegisterDatasetResponse = await self._connection.call(
            self._connection.datasets.RegisterDataset, request
        )
        return model.dataset_of(response.dataset)

    async def plan_dataset(self, descriptors: bytes, message_type: str) -> DatasetPlan:
        """Return what `register_dataset` would do, without doing it. Raises the same exceptions; see `refusals`."""
        request = datasets_pb2.RegisterDatasetRequest(
            descriptors=FileDescriptorSet.FromString(descriptors), message_type=message_type, validate_only=True
        )
        response: datasets_pb2.RegisterDatasetResponse = await self._connection.call(
            self._connection.datasets.RegisterDataset, request
        )
        return model.plan_of(response)

    async def list_dataset_versions(self, name: str) -> AsyncIterator[Dataset]:
        """Yield the versions of a dataset, newest first, without descriptors. Each page is one call."""
        token = ""
        while True:
            response: datasets_pb2.ListDatasetVersionsResponse = await self._connection.call(
                self._connection.datasets.ListDatasetVersions,
                datasets_pb2.ListDatasetVersionsRequest(
                    parent=model.resource(name), page_size=_PAGE_SIZE, page_token=token
                ),
            )
            for dataset in response.datasets:
                yield model.dataset_of(dataset)
            token = response.next_page_token
            if not token:
                return

    async def get_dataset(self, name: str) -> Dataset:
        """Return a dataset with its descriptors. Raises Refused with DATASET_NOT_FOUND, or another BulkError."""
        response: datasets_pb2.GetDatasetResponse = await self._connection.call(
            self._connection.datasets.GetDataset, datasets_pb2.GetDatasetRequest(name=model.resource(name))
        )
        return model.dataset_of(response.dataset)

    async def delete_dataset(self, name: str, *, drop_table: bool = False) -> None:
        """Delete a dataset. No new job of it can be opened. Its table stays unless `drop_table`.

        Raises Refused with DATASET_NOT_FOUND, DATASET_HAS_JOBS (jobs that have not ended) or TABLE_IN_USE (another
        object depends on the table to drop), or another BulkError.
        """
        request = datasets_pb2.DeleteDatasetRequest(name=model.resource(name), drop_table=drop_table)
        await self._connection.call(self._connection.datasets.DeleteDataset, request)

    async def get_dataset_status(self, name: str) -> DatasetStatus:
        """Return whether a dataset is written now, why not, and what is parked of it. Raises as `get_dataset` does."""
        response: datasets_pb2.GetDatasetStatusResponse = await self._connection.call(
            self._connection.datasets.GetDatasetStatus, datasets_pb2.GetDatasetStatusRequest(name=model.resource(name))
        )
        return status_of(response.status)

    async def pause_dataset(self, name: str, *, reason: str = "") -> DatasetStatus:
        """Pause a dataset: its records are accepted, and not written until `resume_dataset`. Idempotent."""
        request = datasets_pb2.PauseDatasetRequest(name=model.resource(name), reason=reason)
        response: datasets_pb2.PauseDatasetResponse = await self._connection.call(
            self._connection.datasets.PauseDataset, request
        )
        return status_of(response.status)

    async def resume_dataset(self, name: str) -> DatasetStatus:
        """Lift the pause of a dataset, or try its blocked table now; discard nothing more. Idempotent."""
        response: datasets_pb2.ResumeDatasetResponse = await self._connection.call(
            self._connection.datasets.ResumeDataset, datasets_pb2.ResumeDatasetRequest(name=model.resource(name))
        )
        return status_of(response.status)

    async def discard_parked(self, name: str, *, validate_only: bool = False) -> Discarded:
        """Discard what is parked of a blocked or paused dataset now: its records count as expired.

        Returns what is discarded. validate_only: discard nothing. Raises Refused with DATASET_NOT_FOUND or
        DATASET_NOT_BLOCKED, or another BulkError.
        """
        request = datasets_pb2.DiscardParkedRequest(name=model.resource(name), validate_only=validate_only)
        response: datasets_pb2.DiscardParkedResponse = await self._connection.call(
            self._connection.datasets.DiscardParked, request
        )
        return discarded_of(response)

    async def get_ledger(self) -> LedgerSnapshot:
        """Return how far workers have applied each partition, and what they have parked of all tenants."""
        response: ledger_pb2.GetLedgerResponse = await self._connection.call(
            self._connection.ledger.GetLedger, ledger_pb2.GetLedgerRequest()
        )
        return ledger_of(response)

    async def list_datasets(self) -> AsyncIterator[Dataset]:
        """Yield the datasets by name, without descriptors. Each page is one call."""
        token = ""
        while True:
            response: datasets_pb2.ListDatasetsResponse = await self._connection.call(
                self._connection.datasets.ListDatasets,
                datasets_pb2.ListDatasetsRequest(page_size=_PAGE_SIZE, page_token=token),
            )
            for dataset in response.datasets:
                yield model.dataset_of(dataset)
            token = response.next_page_token
            if not token:
                return
