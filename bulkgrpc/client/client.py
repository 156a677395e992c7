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
from types import TracebackType
from typing import Self

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from bulkgrpc.client import model
from bulkgrpc.client.config import DEFAULT_TARGET, ClientConfig, Tls
from bulkgrpc.client.connection import Connection
from bulkgrpc.client.errors import BulkError, NotEnded, WrongInput
from bulkgrpc.client.model import DatasetPlan, Job, Rejection, Source
from bulkgrpc.client.packing import Packer
from bulkgrpc.client.send_queue import OnProgress, Outbox
from bulkgrpc.client.send_window import Window
from bulkgrpc.client.source_reader import draw
from bulkgrpc.client.submission import Header, SourceFailed, Submission
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.model import JobOptions, is_dataset, is_idempotency_key
from bulkgrpc.v1 import datasets_pb2, jobs_pb2

WAIT_DEADLINE_S = 300.0
"""In which a job should have ended, by the service's promise."""
_FIRST_POLL_S = 0.05
_POLL_GROWTH = 1.5
_POLL_S_MAX = 2.0
_WATCH_FROM_S = 0.25
"""From this pause on the server is left to tell; its own pause is this long."""
_PAGE_SIZE = 200
_REJECTIONS_PAGE_SIZE = 1000


class AsyncJobHandle:
    """A job of the service. Costs nothing to make; knows what it was told last."""

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
        """The job as last told by the server; None if nothing was asked yet. No round trip."""
        return self._job

    @property
    def replayed(self) -> bool:
        """Whether the submission found the job sealed already and changed nothing."""
        return self._replayed

    async def get(self) -> Job:
        """Ask the server for the job as it is now. Raises BulkError."""
        self._job = await self._client.get_job(self._name)
        return self._job

    async def wait(
        self, *, deadline_s: float = WAIT_DEADLINE_S, on_progress: Callable[[Job], None] | None = None
    ) -> Job:
        """Return the job when it has ended.

        Asks at growing intervals at first, then watches; where that does not go, asks on, at last every 2 s.
        on_progress: told each answer. Raises NotEnded after `deadline_s`; the job itself goes on. Raises BulkError.
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
                raise NotEnded(self._name, job.state.name, deadline_s)
            if pause_s > _WATCH_FROM_S and not watched:
                watched = True
                await self._watch_until(ends_at_s, on_progress)
                continue
            await asyncio.sleep(min(pause_s, max(0.0, ends_at_s - now_s())))
            pause_s = min(pause_s * _POLL_GROWTH, _POLL_S_MAX)

    async def watch(self) -> AsyncGenerator[Job, None]:
        """Give the job as it is now, then after each change, until it has ended. Raises BulkError."""
        last: Job | None = None
        connection = self._client._connection
        answers = connection.follow(connection.jobs.WatchJob, jobs_pb2.WatchJobRequest(name=self._name))
        async with aclosing(answers):
            answer: jobs_pb2.WatchJobResponse
            async for answer in answers:
                self._job = model.job_of(answer.job)
                if self._job != last:
                    last = self._job
                    yield last

    async def cancel(self) -> Job:
        """End the job and return it: nothing more of it is written then.

        Raises Refused with JOB_ENDED if it has ended otherwise, or another BulkError.
        """
        connection = self._client._connection
        answer: jobs_pb2.CancelJobResponse = await connection.call(
            connection.jobs.CancelJob, jobs_pb2.CancelJobRequest(name=self._name)
        )
        self._job = model.job_of(answer.job)
        return self._job

    async def delete(self) -> None:
        """Delete the job, with its rejections and its idempotency key; rows in the table stay.

        Raises Refused with JOB_NOT_ENDED if it has not ended, or another BulkError.
        """
        connection = self._client._connection
        await connection.call(connection.jobs.DeleteJob, jobs_pb2.DeleteJobRequest(name=self._name))

    async def rejections(self, *, with_records: bool = False) -> AsyncGenerator[Rejection, None]:
        """Give the records that could not be applied, by their place in the job, asking for a page at a time.

        with_records: whether to fetch their bytes too. Raises BulkError.
        """
        token, connection = "", self._client._connection
        while True:
            request = jobs_pb2.ListRejectionsRequest(
                parent=self._name, page_size=_REJECTIONS_PAGE_SIZE, page_token=token, with_records=with_records
            )
            answer: jobs_pb2.ListRejectionsResponse = await connection.call(connection.jobs.ListRejections, request)
            for rejection in answer.rejections:
                yield model.rejection_of(rejection)
            token = answer.next_page_token
            if not token:
                return

    async def _watch_until(self, ends_at_s: float, on_progress: Callable[[Job], None] | None) -> None:
        """Watch until the job has ended, the time is over, or watching does not go: the next question tells why."""
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
        self._config = config
        self._connection = Connection(target, tenant, token, tls, config)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Submissions under way break off; their jobs stay open."""
        await self._connection.close()

    async def submit(
        self,
        dataset: str | Dataset,
        batches: Source,
        *,
        idempotency_key: str | None = None,
        labels: Mapping[str, str] | None = None,
        options: JobOptions = JobOptions(),
        on_progress: OnProgress | None = None,
    ) -> AsyncJobHandle:
        """Submit records as one job and return it once it is sealed: every record is then stored durably.

        dataset: its name, with or without `datasets/`; with `@2` after it if the records are of version 2, for instance
        because your code was generated from that; or what `register_dataset` or `get_dataset` returned, which is of a
        version too. Of a name alone, the newest version. batches: an iterable, plain or asynchronous, of messages of
        the dataset's type (packed by `batch_records` and `batch_bytes`), of batches' bytes, or of `Batch` values; a
        plain one is drawn from on a thread of its own. It is never drawn further than `buffer_bytes_max` ahead of what
        is acknowledged. idempotency_key: 1 to 128 printable ASCII characters; a submission with the same key is the
        same job, and goes on where it broke off if it gives the same batches. Default: a random one. labels: at most
        16. options: how the job is to be treated; the same for the same key. on_progress: told of each batch sent and
        acknowledged, on the event loop: it must not block.

        A stream that breaks is opened again by itself. Raises Refused, Unreachable, or GaveUp after `retry_deadline_s`
        without progress; WrongInput for what is no record; whatever `batches` raises. In all these cases the job, if it
        was opened, stays open for another submission with its key.
        """
        name, version = model.name_and_version(dataset)
        key = idempotency_key or uuid.uuid4().hex
        header = Header(model.resource(name), key, dict(labels or {}), options, version)
        _check(header)
        outbox = Outbox(Window(self._config.buffer_bytes_max, self._config.buffer_batches_max), on_progress)
        submission = Submission(self._connection, header, outbox)

        async def check_type(message_type: str) -> None:
            expected = (await self.get_dataset(name)).message_type
            if message_type != expected:
                raise WrongInput(f"dataset {name} takes messages of {expected}, not {message_type}")

        drawing = asyncio.create_task(draw(batches, Packer(self._config), outbox, check_type))
        try:
            sealed = model.job_of(await submission.run())
        except SourceFailed as failed:
            raise failed.failure from None
        finally:
            drawing.cancel()
            await asyncio.gather(drawing, return_exceptions=True)
        return AsyncJobHandle(self, sealed.name, sealed, replayed=submission.replayed)

    def job(self, name: str) -> AsyncJobHandle:
        """Return the handle of a job by its name, without asking the server."""
        return AsyncJobHandle(self, name)

    async def get_job(self, name: str) -> Job:
        """Return a job as it is now. Raises Refused with JOB_NOT_FOUND, or another BulkError."""
        answer: jobs_pb2.GetJobResponse = await self._connection.call(
            self._connection.jobs.GetJob, jobs_pb2.GetJobRequest(name=name)
        )
        return model.job_of(answer.job)

    async def list_jobs(self) -> AsyncIterator[Job]:
        """Give the tenant's jobs, newest first, asking for a page at a time."""
        token = ""
        while True:
            answer: jobs_pb2.ListJobsResponse = await self._connection.call(
                self._connection.jobs.ListJobs, jobs_pb2.ListJobsRequest(page_size=_PAGE_SIZE, page_token=token)
            )
            for job in answer.jobs:
                yield model.job_of(job)
            token = answer.next_page_token
            if not token:
                return

    async def register_dataset(self, descriptors: bytes, message_type: str) -> Dataset:
        """Register a message type as a dataset, or find it registered; its table is there afterwards.

        descriptors: a serialized FileDescriptorSet with the message's file and all it imports. If the dataset is there
        with another definition, this is its next version. Raises Refused naming the field that cannot be a column, or
        (DATASET_INCOMPATIBLE) cannot follow the version that is there, with the way out.
        """
        request = datasets_pb2.RegisterDatasetRequest(
            descriptors=FileDescriptorSet.FromString(descriptors), message_type=message_type
        )
        answer: datasets_pb2.RegisterDatasetResponse = await self._connection.call(
            self._connection.datasets.RegisterDataset, request
        )
        return model.dataset_of(answer.dataset)

    async def plan_dataset(self, descriptors: bytes, message_type: str) -> DatasetPlan:
        """Tell what `register_dataset` would do, doing nothing. Raises what that would raise."""
        request = datasets_pb2.RegisterDatasetRequest(
            descriptors=FileDescriptorSet.FromString(descriptors), message_type=message_type, validate_only=True
        )
        answer: datasets_pb2.RegisterDatasetResponse = await self._connection.call(
            self._connection.datasets.RegisterDataset, request
        )
        return DatasetPlan(model.dataset_of(answer.dataset), tuple(answer.statements), answer.new_version)

    async def list_dataset_versions(self, name: str) -> AsyncIterator[Dataset]:
        """Give the versions of a dataset, the newest first, without their descriptors, asking for a page at a time."""
        token = ""
        while True:
            answer: datasets_pb2.ListDatasetVersionsResponse = await self._connection.call(
                self._connection.datasets.ListDatasetVersions,
                datasets_pb2.ListDatasetVersionsRequest(
                    name=model.resource(name), page_size=_PAGE_SIZE, page_token=token
                ),
            )
            for dataset in answer.datasets:
                yield model.dataset_of(dataset)
            token = answer.next_page_token
            if not token:
                return

    async def get_dataset(self, name: str) -> Dataset:
        """Return a dataset with its descriptors. Raises Refused with DATASET_NOT_FOUND, or another BulkError."""
        answer: datasets_pb2.GetDatasetResponse = await self._connection.call(
            self._connection.datasets.GetDataset, datasets_pb2.GetDatasetRequest(name=model.resource(name))
        )
        return model.dataset_of(answer.dataset)

    async def delete_dataset(self, name: str, *, drop_table: bool = False) -> None:
        """Delete a dataset: nobody opens a job of it any more. Its table stays unless `drop_table`.

        Raises Refused with DATASET_NOT_FOUND, DATASET_HAS_JOBS (they have not ended) or TABLE_IN_USE (something depends
        on the table to be dropped), or another BulkError.
        """
        request = datasets_pb2.DeleteDatasetRequest(name=model.resource(name), drop_table=drop_table)
        await self._connection.call(self._connection.datasets.DeleteDataset, request)

    async def list_datasets(self) -> AsyncIterator[Dataset]:
        """Give the datasets by name, without their descriptors, asking for a page at a time."""
        token = ""
        while True:
            answer: datasets_pb2.ListDatasetsResponse = await self._connection.call(
                self._connection.datasets.ListDatasets,
                datasets_pb2.ListDatasetsRequest(page_size=_PAGE_SIZE, page_token=token),
            )
            for dataset in answer.datasets:
                yield model.dataset_of(dataset)
            token = answer.next_page_token
            if not token:
                return


def _check(header: Header) -> None:
    if not is_dataset(header.dataset.removeprefix("datasets/")):
        raise WrongInput(f"{header.dataset!r} names no dataset: a letter, then letters, digits and _, all lower case")
    if not is_idempotency_key(header.idempotency_key):
        raise WrongInput("an idempotency key is 1 to 128 printable ASCII characters without spaces")
