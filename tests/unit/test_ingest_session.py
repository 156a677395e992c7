"""Whole ingest sessions over a transport of the test's own: no gRPC, no Kafka, no PostgreSQL, no Redis."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from bulkgrpc.blocks import BlockedDataset
from bulkgrpc.errors import Busy, NotNow, Reason, Refusal, TooMuch, Unavailable
from bulkgrpc.ingest import lease, parked_limit
from bulkgrpc.ingest.admission import Admission
from bulkgrpc.ingest.batch_appender import LogAccess
from bulkgrpc.ingest.byte_budget import ByteBudget
from bulkgrpc.ingest.dataset_cache import DatasetCache
from bulkgrpc.ingest.identity import SCOPES, Caller
from bulkgrpc.ingest.job_opener import JobOpener, OpenerStores
from bulkgrpc.ingest.job_watch import JobWatch
from bulkgrpc.ingest.jobs import Jobs, PageRequest
from bulkgrpc.ingest.parked_limit import ParkedLimit
from bulkgrpc.ingest.progress_writer import ProgressWriter
from bulkgrpc.ingest.session import BatchLimits, IngestSession, SealedJob, SessionParts
from bulkgrpc.ingest.topic_guard import TopicGuard
from bulkgrpc.model import Job, JobKey, JobState, Kind
from bulkgrpc.v1 import ingest_pb2
from tests.support import examples
from tests.support.ingest_ports import MemoryBlocks, MemoryCatalog, MemoryJobs, MemoryLiveJobs, MemoryLog, MemoryTopic
from tests.support.jobs import NOW

Message = ingest_pb2.StreamRecordsRequest
ACME = Caller("acme", SCOPES)


def header(key: str = "key", session_id: str = "one") -> Message:
    name = f"datasets/{examples.readings().name}"
    return Message(header=ingest_pb2.JobHeader(dataset=name, idempotency_key=key, session_id=session_id))


def batch(sequence: int) -> Message:
    return Message(batch=ingest_pb2.RecordBatch(sequence=sequence, records=[b"x", b"y"]))


def seal(batches: int) -> Message:
    return Message(seal=ingest_pb2.Seal(batch_count=batches))


@dataclass
class Script:
    """Sends the given messages, then half-closes; breaks: its connection breaks instead."""

    messages: list[Message]
    breaks: bool = False
    trace_context: str = ""
    opened: list[tuple[JobState, int, bool]] = field(default_factory=list)
    acknowledged: list[int] = field(default_factory=list)

    async def receive(self) -> bytes | None:
        if self.messages:
            return self.messages.pop(0).SerializeToString()
        if self.breaks:
            raise asyncio.CancelledError
        return None

    async def send_opened(self, job: Job, *, replayed: bool) -> None:
        self.opened.append((job.state, job.next_sequence, replayed))

    async def send_acknowledged(self, next_sequence: int) -> None:
        self.acknowledged.append(next_sequence)


class Process:
    """What the sessions of a process share."""

    def __init__(self, live_jobs: MemoryLiveJobs | None = None) -> None:
        self.log, self.rows, self.live_jobs = MemoryLog(), MemoryJobs(), live_jobs or MemoryLiveJobs()
        watch, now = JobWatch(self.rows, self.live_jobs), lambda: NOW
        self.jobs = Jobs(self.rows, self.live_jobs, watch)
        self.blocks = MemoryBlocks()
        self.parked = ParkedLimit(self.blocks, 1000)
        self.topic_log, self.topic_record = MemoryTopic(), MemoryTopic()
        self.topic = TopicGuard("records", self.topic_log, self.topic_record)
        datasets = DatasetCache(MemoryCatalog(examples.readings()))
        stores = OpenerStores(self.rows, self.live_jobs, datasets, self.log, self.parked, self.topic)
        self.parts = SessionParts(
            Admission(10),
            JobOpener(stores, "accept", now),
            LogAccess(self.log, ByteBudget(1 << 20), asyncio.Semaphore(1), now, self.parked, self.topic),
            ProgressWriter(self.live_jobs),
            self.rows,
            watch,
            BatchLimits(1 << 20, 1000),
            now,
        )

    async def stream(self, *messages: Message, breaks: bool = False) -> tuple[Script, SealedJob]:
        script = Script(list(messages), breaks)
        return script, await IngestSession(self.parts, ACME, script).run()

    async def refused(self, *messages: Message) -> Refusal:
        """Run a stream that must be refused; return the refusal."""
        with pytest.raises((Refusal, ExceptionGroup)) as caught:
            await self.stream(*messages)
        error: BaseException = caught.value
        while isinstance(error, BaseExceptionGroup):
            (error,) = error.exceptions
        assert isinstance(error, Refusal)
        return error

    @property
    def kinds(self) -> list[tuple[Kind, int]]:
        return [(message.kind, message.sequence) for message in self.log.messages]


async def test_a_job_is_opened_appended_acknowledged_and_sealed() -> None:
    process = Process()
    script, sealed = await process.stream(header(), batch(0), batch(1), seal(2))
    assert script.opened == [(JobState.OPEN, 0, False)]
    assert script.acknowledged[-1] == 2
    assert (sealed.replayed, sealed.job.state, sealed.job.counts.accepted) == (False, JobState.SEALED, 4)
    assert process.kinds == [(Kind.BATCH, 0), (Kind.BATCH, 1), (Kind.SEAL, 2)]
    assert process.parts.admission.open_streams == 0
    assert process.live_jobs.leases == {}


async def test_a_stream_without_a_seal_leaves_its_job_open_and_the_next_one_resumes_it() -> None:
    process = Process()
    refused = await process.refused(header(), batch(0))
    assert (type(refused), refused.reason) == (NotNow, Reason.MISSING_SEAL)
    script, sealed = await process.stream(header(), batch(0), batch(1), seal(2))
    assert script.opened == [(JobState.OPEN, 1, False)]
    assert (sealed.job.state, sealed.job.counts.accepted) == (JobState.SEALED, 4)
    assert process.kinds == [(Kind.BATCH, 0), (Kind.BATCH, 1), (Kind.SEAL, 2)]


async def test_a_broken_connection_leaves_its_job_open_and_frees_its_lease() -> None:
    process = Process()
    with pytest.raises(asyncio.CancelledError):
        await process.stream(header(), batch(0), breaks=True)
    assert process.kinds == [(Kind.BATCH, 0)]
    assert process.live_jobs.leases == {}
    script, _ = await process.stream(header(session_id="two"), seal(1))
    assert script.opened == [(JobState.OPEN, 1, False)]


async def test_a_sealed_job_is_replayed_and_takes_no_batches() -> None:
    process = Process()
    await process.stream(header(), batch(0), seal(1))
    for messages in ((header(),), (header(), seal(1))):
        script, sealed = await process.stream(*messages)
        assert (script.opened[0][2], sealed.replayed) == (True, True)
    refused = await process.refused(header(), batch(1))
    assert refused.reason is Reason.JOB_SEALED
    assert process.kinds == [(Kind.BATCH, 0), (Kind.SEAL, 1)]


@pytest.mark.parametrize(("batches", "reason"), [(0, Reason.SEQUENCE_BACKWARD), (2, Reason.SEQUENCE_GAP)])
async def test_a_seal_with_another_number_of_batches_seals_nothing(batches: int, reason: Reason) -> None:
    process = Process()
    refused = await process.refused(header(), batch(0), seal(batches))
    assert refused.reason is reason
    assert process.kinds == [(Kind.BATCH, 0)]


def without_postgres(process: Process) -> None:
    process.rows.unavailable = True


def without_redis(process: Process) -> None:
    process.live_jobs.unavailable = True


@pytest.mark.parametrize("lose", [without_postgres, without_redis])
async def test_a_job_is_accepted_with_either_of_the_stores_unavailable(lose: Callable[[Process], None]) -> None:
    process = Process()
    await process.stream(header("warm"), seal(0))
    lose(process)
    _, sealed = await process.stream(header(), batch(0), seal(1))
    assert (sealed.job.state, sealed.job.next_sequence, sealed.job.counts.accepted) == (JobState.SEALED, 1, 2)
    assert (await process.jobs.get(ACME, sealed.job.spec.key.name)).state is JobState.SEALED


@pytest.mark.parametrize("lose", [without_postgres, without_redis, lambda process: process.live_jobs.lose()])
async def test_a_job_keeps_its_partition_when_others_are_added_whatever_store_is_lost(
    lose: Callable[[Process], None],
) -> None:
    process = Process()
    await process.refused(header(), batch(0))
    process.log.first_partition = 7
    lose(process)
    first = 1 if process.rows.unavailable else 0
    await process.stream(header(), *map(batch, range(first, 3)), seal(3))
    assert set(process.log.placed) == {0}
    process.rows.unavailable = process.live_jobs.unavailable = False
    await process.stream(header("another"), batch(0), seal(1))
    assert set(process.log.placed) == {0, 7}


async def test_without_both_stores_a_job_is_refused_because_no_earlier_stream_would_learn_of_it() -> None:
    process = Process()
    await process.stream(header("warm"), seal(0))
    without_postgres(process)
    without_redis(process)
    refused = await process.refused(header(), batch(0), seal(1))
    assert (type(refused), refused.reason) == (Unavailable, Reason.POSTGRES_UNAVAILABLE)
    assert refused.retry_after_s
    assert process.kinds == [(Kind.SEAL, 0)]
    name = JobKey.derive("acme", "key").name
    for call in (
        process.jobs.get(ACME, name),
        process.jobs.list(ACME, "", PageRequest(0, "")),
        process.jobs.cancel(ACME, name),
    ):
        with pytest.raises(Refusal) as caught:
            await call
        assert caught.value.reason is Reason.POSTGRES_UNAVAILABLE
    with pytest.raises(Refusal) as caught:
        await process.jobs.delete(ACME, name)
    assert caught.value.reason is Reason.REDIS_UNAVAILABLE


def blocked(stored_bytes: int, tenant: str = "") -> list[BlockedDataset]:
    return [BlockedDataset(examples.readings().name, tenant, "table", "column value is missing", stored_bytes)]


async def test_a_new_job_of_a_blocked_dataset_is_accepted_up_to_the_limit_and_then_refused_and_not_created() -> None:
    process = Process()
    process.blocks.found = blocked(1000)
    await process.parked.read()
    await process.stream(header("one"), batch(0), seal(1))
    process.blocks.found = blocked(1001)
    await process.parked.read()
    refused = await process.refused(header("two"), batch(0), seal(1))
    assert isinstance(refused, TooMuch)
    assert (refused.reason, refused.retry_after_s) == (Reason.DATASET_BLOCKED, 10.0)
    assert "column value is missing" in refused.message
    assert len(process.rows.rows) == 1
    process.blocks.found = []
    await process.parked.read()
    await process.stream(header("two"), batch(0), seal(1))


async def test_batches_of_an_open_job_are_accepted_up_to_twice_the_limit_and_its_acknowledged_ones_stay() -> None:
    process = Process()
    await process.refused(header(), batch(0))  # without a seal: the job stays open
    process.blocks.found = blocked(2000)
    await process.parked.read()
    await process.refused(header(), batch(1))
    process.blocks.found = blocked(2001)
    await process.parked.read()
    refused = await process.refused(header(), batch(2), seal(3))
    assert refused.reason is Reason.DATASET_BLOCKED
    assert [message.sequence for message in process.log.messages] == [0, 1]
    await process.stream(header(), seal(2))


async def test_what_is_parked_of_another_tenant_refuses_nothing() -> None:
    process = Process()
    process.blocks.found = blocked(1 << 40, "other")
    await process.parked.read()
    await process.stream(header("one"), batch(0), seal(1))
    process.blocks.found = blocked(1 << 40, ACME.tenant)
    await process.parked.read()
    assert (await process.refused(header("two"), batch(0), seal(1))).reason is Reason.DATASET_BLOCKED


async def test_what_was_read_last_holds_while_postgresql_is_unavailable() -> None:
    process = Process()
    process.blocks.found = blocked(1 << 40)
    await process.parked.read()
    process.blocks.unavailable = True
    await process.parked.read()
    assert (await process.refused(header(), batch(0), seal(1))).reason is Reason.DATASET_BLOCKED


async def test_nothing_is_accepted_for_a_topic_that_the_ledger_does_not_know_until_it_is_adopted() -> None:
    process = Process()
    process.topic_log.id = former = uuid.uuid4()
    await process.topic.look()
    assert process.topic_record.id == former
    await process.refused(header("open"), batch(0))  # without a seal: the job stays open
    await process.stream(header("sealed"), batch(0), seal(1))
    process.topic_log.id = uuid.uuid4()
    await process.topic.look()
    for messages in ((header("open"), batch(1)), (header("open"), seal(1)), (header("new"), batch(0), seal(1))):
        refused = await process.refused(*messages)
        assert (refused.reason, refused.retry_after_s) == (Reason.TOPIC_REPLACED, 10.0)
        assert "adopt-topic" in refused.message
    assert len(process.rows.rows) == 2
    _, replayed = await process.stream(header("sealed"))
    assert replayed.replayed
    # A store that is unavailable changes nothing.
    process.topic_record.available = False
    await process.topic.look()
    assert (await process.refused(header("new"), batch(0))).reason is Reason.TOPIC_REPLACED
    process.topic_record.available, process.topic_record.id = True, process.topic_log.id
    await process.topic.look()
    await process.stream(header("new"), batch(0), seal(1))


async def test_a_topic_that_is_missing_twice_is_refused_until_it_is_there_again() -> None:
    process = Process()
    process.topic_log.id = former = uuid.uuid4()
    await process.topic.look()
    process.topic_log.id = None
    await process.topic.look()
    await process.stream(header("one"), batch(0), seal(1))
    await process.topic.look()
    assert (await process.refused(header("two"), batch(0), seal(1))).reason is Reason.TOPIC_MISSING
    process.topic_log.available = False
    await process.topic.look()
    assert (await process.refused(header("two"), batch(0), seal(1))).reason is Reason.TOPIC_MISSING
    process.topic_log.available, process.topic_log.id = True, former
    await process.topic.look()
    await process.stream(header("two"), batch(0), seal(1))


async def test_what_is_parked_is_read_again_after_an_unexpected_error(monkeypatch: pytest.MonkeyPatch) -> None:
    process, again = Process(), asyncio.Event()
    answers: list[Exception | None] = [RuntimeError("a defect"), None]

    async def found() -> list[BlockedDataset]:
        if error := answers.pop(0):
            raise error
        again.set()
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(parked_limit, "READ_S", 0.0)
    monkeypatch.setattr(process.blocks, "blocked", found)
    task = asyncio.create_task(process.parked.run())
    await asyncio.wait_for(again.wait(), 5)
    task.cancel()


@dataclass
class Overtaken(Script):
    """A stream whose process is paused before one of its messages, while another one opens its job."""

    process: Process = field(default_factory=Process)
    paused_before: str = "batch"

    async def receive(self) -> bytes | None:
        if self.messages and self.messages[0].WhichOneof("message") == self.paused_before:
            self.process.live_jobs.leases.clear()
            await self.process.refused(header(session_id="two"))  # opened, and left without a seal
        return await super().receive()


@pytest.mark.parametrize("paused_before", ["batch", "seal"])
async def test_a_superseded_stream_acknowledges_and_seals_nothing_and_is_no_progress(
    monkeypatch: pytest.MonkeyPatch, paused_before: str
) -> None:
    # As after a pause: no confirmation is ever in time.
    monkeypatch.setattr(lease, "RIGHT_S", -1.0)
    process = Process()
    messages = [header(), batch(0), batch(1), seal(2)]
    script = Overtaken(messages, process=process, paused_before=paused_before)
    with pytest.raises(ExceptionGroup) as caught:
        await IngestSession(process.parts, ACME, script).run()
    assert caught.group_contains(Busy, match="another stream has opened")
    assert (Kind.SEAL, 2) not in process.kinds
    if paused_before == "batch":
        assert script.acknowledged == []
        assert {live.next_sequence for live in process.live_jobs.jobs.values()} == {0}
    _, sealed = await process.stream(header(session_id="three"), batch(0), batch(1), seal(2))
    assert (sealed.job.state, sealed.job.counts.accepted) == (JobState.SEALED, 4)


async def test_a_stream_whose_job_is_opened_in_the_row_alone_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process()
    without_redis(process)
    watching = asyncio.create_task(process.parts.watch.run())
    script = Endless([header(), batch(0)])
    first = asyncio.create_task(IngestSession(process.parts, ACME, script).run())
    async with asyncio.timeout(5):
        while not script.acknowledged:  # noqa: ASYNC110 — the stream has no event for it
            await asyncio.sleep(0)
        await process.refused(header(session_id="two"))
        with pytest.raises(ExceptionGroup) as caught:
            await first
    assert caught.group_contains(Busy, match="another stream has opened")
    watching.cancel()


@dataclass
class Endless(Script):
    """Sends the given messages, then waits."""

    async def receive(self) -> bytes | None:
        if not self.messages:
            await asyncio.Event().wait()
        return await super().receive()


def lose(process: Process, next_sequence: int) -> None:
    """Have a worker fail the only job, because Kafka lost the batches from `next_sequence` on."""
    ((job_id, row),) = process.rows.rows.items()
    failed = replace(row, state=JobState.FAILED, lost=True, failure_reason="LOST_IN_KAFKA: …", end_time=NOW)
    process.rows.rows[job_id] = replace(failed, next_sequence=next_sequence)


async def test_each_message_says_how_far_its_job_was_stored_before_it() -> None:
    process = Process()
    await process.stream(header(), batch(0), batch(1), seal(2))
    stored = [message.stored_sequence for message in process.log.messages]
    assert stored[0] == 0
    assert stored[1] <= 1
    assert stored[2] == 2
    refused = Process()
    await refused.refused(header(), batch(0), batch(1))
    await refused.stream(header(), batch(2), seal(3))
    assert [message.stored_sequence for message in refused.log.messages][-2:] == [2, 3]


async def test_a_job_that_lost_batches_continues_there_and_is_never_replayed() -> None:
    process = Process()
    await process.stream(header(), batch(0), batch(1), batch(2), seal(3))
    lose(process, 1)
    script, sealed = await process.stream(header(), batch(1), batch(2), seal(3))
    assert script.opened == [(JobState.OPEN, 1, False)]
    assert (sealed.replayed, sealed.job.state) == (False, JobState.SEALED)
    again = process.log.messages[4:]
    assert [(message.kind, message.sequence, message.attempt) for message in again] == [
        (Kind.BATCH, 1, 1),
        (Kind.BATCH, 2, 1),
        (Kind.SEAL, 3, 1),
    ]
    assert again[0].stored_sequence == 1
    live = process.live_jobs.jobs[JobKey.derive("acme", "key")]
    assert (live.attempt, live.next_sequence, live.state) == (1, 3, JobState.SEALED)


async def test_a_client_without_the_lost_batches_does_not_open_the_job_again() -> None:
    process = Process()
    await process.stream(header(), batch(0), batch(1), seal(2))
    lose(process, 1)
    opening = header()
    opening.header.first_sequence = 2
    refused = await process.refused(opening)
    assert (type(refused), refused.reason) == (NotNow, Reason.JOB_ENDED)
    assert "LOST_IN_KAFKA" in refused.message
    ((_, row),) = process.rows.rows.items()
    assert (row.state, row.lost) == (JobState.FAILED, True)


async def test_another_request_does_not_open_a_job_again_that_lost_batches() -> None:
    process = Process()
    await process.stream(header(), batch(0), seal(1))
    lose(process, 0)
    opening = header()
    opening.header.options.atomic = True
    assert (await process.refused(opening)).reason is Reason.IDEMPOTENCY_CONFLICT
    assert next(iter(process.rows.rows.values())).lost


async def test_a_job_whose_staged_rows_are_not_deleted_yet_is_opened_later(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process()
    await process.stream(header(), batch(0), seal(1))
    lose(process, 0)

    async def not_yet(_: JobKey) -> bool:
        return False

    monkeypatch.setattr(process.rows, "open_again", not_yet)
    refused = await process.refused(header())
    assert (type(refused), refused.reason) == (Unavailable, Reason.RESUME_NOT_READY)
