"""What a submission does with streams that stall, break, refuse, or were there before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest

from bulkgrpc.client import (
    AsyncBulkClient,
    Batch,
    CallFailed,
    ClientConfig,
    GaveUp,
    Progress,
    Reason,
    Refused,
    Unreachable,
    WrongInput,
)
from bulkgrpc.errors import Busy, Conflict, Invalid, NotNow, Refusal, TooLate, TooMuch, Unavailable
from bulkgrpc.rpc_status import MESSAGE_BYTES_MAX
from bulkgrpc.v1 import ingest_pb2, jobs_pb2
from tests.unit.fake_server import JOB, Stream, fake_server, seal_everything

pytestmark = pytest.mark.timeout(20)
QUICK = ClientConfig(retry_base_s=0.01, retry_cap_s=0.02, retry_deadline_s=0.3, connect_deadline_s=0.2)
BATCH = Batch(b"x" * 1000, 1)


def batches(count: int) -> Iterator[Batch]:
    for _ in range(count):
        yield BATCH


async def test_nothing_is_drawn_beyond_the_buffer_until_batches_are_acknowledged() -> None:
    drawn = 0
    stalled, go_on = asyncio.Event(), asyncio.Event()

    async def source() -> AsyncIterator[Batch]:
        nonlocal drawn
        for _ in range(50):
            drawn += 1
            yield BATCH

    async def stall(stream: Stream) -> None:
        await stream.open()
        await stream.receive(4)
        stalled.set()
        await go_on.wait()
        await stream.acknowledge(4)
        await stream.receive(8)
        stalled.set()
        await stream.acknowledge(8)
        for number in range(9, 51):
            await stream.receive(number)
            await stream.acknowledge(number)
        await stream.receive()
        await stream.seal()

    config = ClientConfig(buffer_bytes_max=4 * len(BATCH.payload))
    async with fake_server(stall) as fake, AsyncBulkClient(fake.address, config=config) as client:
        submission = asyncio.create_task(client.submit("d", source()))
        await stalled.wait()
        assert drawn == 5, "four are kept, the fifth is pending"
        stalled.clear()
        go_on.set()
        await stalled.wait()
        assert drawn <= 9
        await submission
    assert fake.streams[0].batches == list(range(50))


async def test_the_buffer_is_bounded_by_batches_too() -> None:
    drawn = 0

    async def source() -> AsyncIterator[Batch]:
        nonlocal drawn
        for _ in range(20):
            drawn += 1
            yield BATCH

    async def count_then_seal(stream: Stream) -> None:
        await stream.open()
        await stream.receive(3)
        assert drawn == 4
        await stream.acknowledge(3)
        for number in range(4, 21):
            await stream.receive(number)
            await stream.acknowledge(number)
        await stream.receive()
        await stream.seal()

    config = ClientConfig(buffer_batches_max=3)
    async with fake_server(count_then_seal) as fake, AsyncBulkClient(fake.address, config=config) as client:
        await client.submit("d", source())


async def test_after_a_broken_stream_only_what_is_not_acknowledged_is_sent_again() -> None:
    async def break_off(stream: Stream) -> None:
        await stream.open()
        await stream.receive(5)
        await stream.acknowledge(3)
        await stream.context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    seen: list[Progress] = []
    async with fake_server(break_off, seal_everything) as fake, AsyncBulkClient(fake.address, config=QUICK) as client:
        await client.submit("d", batches(10), idempotency_key="k", on_progress=seen.append)
    first, second = fake.streams
    assert second.header.first_sequence == 3
    assert second.batches == list(range(3, 10))
    assert second.header.idempotency_key == first.header.idempotency_key == "k"
    assert second.header.session_id == first.header.session_id != ""
    assert (seen[-1].acknowledged_batches, seen[-1].sent_batches, seen[-1].streams) == (10, 10, 2)


async def test_a_refusal_while_batches_are_being_written_is_raised_with_its_reason() -> None:
    async def refuse(stream: Stream) -> None:
        await stream.open()
        await stream.receive(1)
        await stream.refuse(TooMuch(Reason.BATCH_TOO_LARGE, "the batch is too large"))

    async with fake_server(refuse) as fake, AsyncBulkClient(fake.address, config=QUICK) as client:
        for _ in range(20):
            with pytest.raises(Refused, match="too large"):
                await client.submit("d", batches(50))
    assert len(fake.streams) <= 40, "the reason is heard on the second stream at the latest"


@pytest.mark.parametrize(
    "refusal",
    [
        Busy(Reason.JOB_BUSY, "another stream holds the job", retry_after_s=0.05),
        Unavailable(Reason.DRAINING, "the server drains", retry_after_s=0.05),
        Unavailable(Reason.RESUME_NOT_READY, "not applied yet", retry_after_s=0.05),
        Unavailable(Reason.KAFKA_UNAVAILABLE, "Kafka is unavailable", retry_after_s=0.05),
        TooLate(Reason.SEAL_TIMEOUT, "the seal was not stored in time", retry_after_s=0.05),
    ],
    ids=lambda refusal: str(refusal.reason),
)
async def test_a_refusal_for_now_is_tried_again_no_sooner_than_the_server_asked(refusal: Refusal) -> None:
    moments: list[float] = []

    async def refuse(stream: Stream) -> None:
        moments.append(asyncio.get_running_loop().time())
        await stream.refuse(refusal)

    async def take(stream: Stream) -> None:
        moments.append(asyncio.get_running_loop().time())
        await seal_everything(stream)

    async with fake_server(refuse, take) as fake, AsyncBulkClient(fake.address, config=QUICK) as client:
        await client.submit("d", batches(1))
    assert moments[1] - moments[0] >= 0.05


async def test_a_refusal_for_good_is_raised_at_once_with_reason_and_field() -> None:
    async def refuse(stream: Stream) -> None:
        await stream.refuse(Invalid(Reason.INVALID_FIELD, "labels: too many", field="header.labels"))

    async with fake_server(refuse) as fake, AsyncBulkClient(fake.address) as client:
        with pytest.raises(Refused, match="too many") as caught:
            await client.submit("d", batches(1))
    assert (caught.value.reason, caught.value.field, caught.value.retriable) == (
        "INVALID_FIELD",
        "header.labels",
        False,
    )
    assert len(fake.streams) == 1


@pytest.mark.parametrize(
    "refusal",
    [
        Conflict(Reason.BATCH_CONFLICT, "batch 0 was accepted before with other bytes", field="batch"),
        NotNow(Reason.JOB_ENDED, "the job was cancelled"),
    ],
    ids=lambda refusal: str(refusal.reason),
)
async def test_what_trying_again_cannot_mend_is_raised_at_once(refusal: Refusal) -> None:
    async def refuse(stream: Stream) -> None:
        await stream.open()
        await stream.receive(1)
        await stream.refuse(refusal)

    async with fake_server(refuse) as fake, AsyncBulkClient(fake.address, config=QUICK) as client:
        with pytest.raises(Refused) as caught:
            await client.submit("d", batches(1))
    assert (caught.value.reason, caught.value.retriable) == (refusal.reason, False)
    assert len(fake.streams) == 1


async def test_a_job_that_ends_while_its_stream_is_broken_is_no_success() -> None:
    async def drop(stream: Stream) -> None:
        await stream.open()
        await stream.receive(1)
        await stream.context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    async def ended(stream: Stream) -> None:
        job = jobs_pb2.Job(name=JOB, state=jobs_pb2.JOB_STATE_FAILED, failure_reason="too many were rejected")
        opened = ingest_pb2.JobOpened(job=job, replayed=True)
        await stream.context.write(ingest_pb2.StreamRecordsResponse(opened=opened))
        await stream.receive()

    async with fake_server(drop, ended) as fake, AsyncBulkClient(fake.address, config=QUICK) as client:
        with pytest.raises(Refused, match=r"FAILED .* too many were rejected") as caught:
            await client.submit("d", batches(3))
    assert caught.value.reason == "JOB_ENDED"


async def test_a_submission_without_progress_gives_up_and_names_the_key() -> None:
    async def refuse(stream: Stream) -> None:
        await stream.refuse(Unavailable(Reason.DRAINING, "the server drains", retry_after_s=0.01))

    async with fake_server(refuse) as fake, AsyncBulkClient(fake.address, config=QUICK) as client:
        with pytest.raises(GaveUp, match="my-key") as caught:
            await client.submit("d", batches(1), idempotency_key="my-key")
    assert caught.value.retriable
    assert len(fake.streams) > 2


async def test_a_server_that_opens_streams_and_drops_them_does_not_keep_a_client_for_ever() -> None:
    async def drop(stream: Stream) -> None:
        await stream.open()
        await stream.context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    async with fake_server(drop) as fake, AsyncBulkClient(fake.address, config=QUICK) as client:
        with pytest.raises(GaveUp):
            await client.submit("d", batches(1))


async def test_of_batches_that_an_earlier_submission_brought_only_the_last_is_sent_to_be_compared() -> None:
    async def go_on(stream: Stream) -> None:
        await stream.open(6)
        await stream.receive()
        await stream.acknowledge(10)
        await stream.seal()

    async with fake_server(go_on) as fake, AsyncBulkClient(fake.address) as client:
        await client.submit("d", batches(10), idempotency_key="k")
    assert fake.streams[0].batches == [5, 6, 7, 8, 9]


async def test_a_replayed_job_comes_back_at_once_and_nothing_is_sent() -> None:
    drawn = 0

    async def source() -> AsyncIterator[Batch]:
        nonlocal drawn
        while True:
            drawn += 1
            yield BATCH

    async def replay(stream: Stream) -> None:
        await stream.open(1000, replayed=True)
        await stream.receive()

    async with fake_server(replay) as fake, AsyncBulkClient(fake.address) as client:
        handle = await client.submit("d", source(), idempotency_key="k")
    assert handle.replayed
    assert fake.streams[0].batches == []


async def test_a_seal_whose_answer_was_lost_is_no_replay() -> None:
    async def seal_and_break(stream: Stream) -> None:
        await stream.open()
        await stream.receive()
        await stream.context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    async def replay(stream: Stream) -> None:
        await stream.open(3, replayed=True)
        await stream.receive()

    async with fake_server(seal_and_break, replay) as fake, AsyncBulkClient(fake.address, config=QUICK) as client:
        handle = await client.submit("d", batches(3))
    assert not handle.replayed
    assert fake.streams[1].batches == []


async def test_a_source_that_fails_leaves_the_job_open_with_what_came_before_acknowledged() -> None:
    seen: list[Progress] = []

    def source() -> Iterator[Batch]:
        yield from batches(3)
        raise LookupError("the file is torn")

    async def take(stream: Stream) -> None:
        await stream.open()
        await stream.receive(3)
        await stream.acknowledge(3)
        await stream.receive()

    async with fake_server(take) as fake, AsyncBulkClient(fake.address) as client:
        with pytest.raises(LookupError, match="torn"):
            await client.submit("d", source(), on_progress=seen.append)
        assert seen[-1].acknowledged_batches == 3
        assert len(fake.streams) == 1


async def test_a_source_that_fails_at_once_opens_no_job() -> None:
    def source() -> Iterator[Batch]:
        if not fake.streams:
            raise LookupError("no such file")
        yield BATCH

    async with fake_server(seal_everything) as fake, AsyncBulkClient(fake.address) as client:
        with pytest.raises(LookupError):
            await client.submit("d", source())
    assert fake.streams == []


async def test_a_server_that_does_not_answer_is_a_broken_stream() -> None:
    async def say_nothing(stream: Stream) -> None:
        await stream.receive()

    config = ClientConfig(open_deadline_s=0.1, retry_base_s=0.01, retry_cap_s=0.02)
    async with (
        fake_server(say_nothing, seal_everything) as fake,
        AsyncBulkClient(fake.address, config=config) as client,
    ):
        await client.submit("d", batches(2))
    assert len(fake.streams) == 2


@pytest.mark.parametrize("after", [0, 1])
async def test_a_batch_or_seal_that_is_never_answered_is_a_broken_stream(after: int) -> None:
    async def stop_answering(stream: Stream) -> None:
        await stream.open()
        await stream.receive(None if after else 2)
        await asyncio.Event().wait()

    config = ClientConfig(acknowledge_deadline_s=0.1, retry_base_s=0.01, retry_cap_s=0.02)
    scripts = (stop_answering, seal_everything)
    async with fake_server(*scripts) as fake, AsyncBulkClient(fake.address, config=config) as client:
        await client.submit("d", batches(2))
    assert fake.streams[1].header.first_sequence == (2 if after else 0)


async def test_a_slow_source_is_no_broken_stream() -> None:
    released = asyncio.Event()

    async def source() -> AsyncIterator[Batch]:
        yield BATCH
        await released.wait()
        yield BATCH

    async def take(stream: Stream) -> None:
        await stream.open()
        await stream.receive(1)
        await stream.acknowledge(1)
        asyncio.get_running_loop().call_later(0.3, released.set)
        await stream.receive()
        await stream.acknowledge(2)
        await stream.seal()

    config = ClientConfig(acknowledge_deadline_s=0.1, open_deadline_s=0.1)
    async with fake_server(take) as fake, AsyncBulkClient(fake.address, config=config) as client:
        await client.submit("d", source())
    assert len(fake.streams) == 1


async def test_a_server_that_lost_acknowledged_batches_is_an_error_and_not_a_hole() -> None:
    async def break_off(stream: Stream) -> None:
        await stream.open()
        await stream.receive(5)
        await stream.acknowledge(5)
        await stream.context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    async def forget(stream: Stream) -> None:
        await stream.open(0)
        await stream.receive()

    async with fake_server(break_off, forget) as fake, AsyncBulkClient(fake.address, config=QUICK) as client:
        with pytest.raises(CallFailed, match="acknowledged") as caught:
            await client.submit("d", batches(10))
    assert caught.value.reason == "LOST_BATCHES"


async def test_a_stream_that_the_server_cancels_is_opened_again() -> None:
    async def cancel(stream: Stream) -> None:
        await stream.open()
        await stream.context.abort(grpc.StatusCode.CANCELLED, "going away")

    async with fake_server(cancel, seal_everything) as fake, AsyncBulkClient(fake.address, config=QUICK) as client:
        await client.submit("d", batches(1))
    assert len(fake.streams) == 2


async def test_a_cancelled_submission_cancels_its_stream_and_never_seals() -> None:
    opened, ended = asyncio.Event(), asyncio.Event()
    sealed = False

    async def source() -> AsyncIterator[Batch]:
        yield BATCH
        await asyncio.Event().wait()

    async def take(stream: Stream) -> None:
        await stream.open()
        await stream.receive(1)
        nonlocal sealed
        opened.set()
        try:
            await stream.receive()
            # A break looks like an end first; a write tells them apart.
            await stream.acknowledge(1)
            sealed = True
        finally:
            ended.set()

    async with fake_server(take) as fake, AsyncBulkClient(fake.address) as client:
        submission = asyncio.create_task(client.submit("d", source()))
        await opened.wait()
        submission.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submission
        await ended.wait()
        assert not sealed


async def test_no_server_is_one_clear_line_after_a_short_time() -> None:
    async with AsyncBulkClient("127.0.0.1:1", config=QUICK) as client:
        with pytest.raises(Unreachable, match=r"no server at 127\.0\.0\.1:1: start one with `bulkgrpc server`"):
            await client.submit("d", batches(1))
        with pytest.raises(Unreachable):
            await client.get_job("tenants/t/jobs/x")


@pytest.mark.parametrize("dataset", ["", "No", "datasets/", "a b"])
async def test_what_names_no_dataset_is_refused_without_a_round_trip(dataset: str) -> None:
    async with AsyncBulkClient("127.0.0.1:1") as client:
        with pytest.raises(WrongInput, match="is not a dataset name"):
            await client.submit(dataset, batches(1))


@pytest.mark.parametrize("text", ["view app.{} depends on it", "Sicht app.{} hängt davon ab: \N{SNOWMAN}"])
async def test_a_refusal_with_a_long_message_arrives_as_itself_and_shortened(text: str) -> None:
    views = ", ".join(text.format(f"view_{number}") for number in range(1000))
    refusal = NotNow(
        Reason.TABLE_IN_USE, f"table t is in use: {views}: drop that first", field="f" * 5000, limit_of="x" * 5000
    )

    async def refuse(stream: Stream) -> None:
        await stream.refuse(refusal)

    async with fake_server(refuse) as fake, AsyncBulkClient(fake.address, config=QUICK) as client:
        with pytest.raises(Refused) as caught:
            await client.submit("d", batches(1))
    assert caught.value.reason == "TABLE_IN_USE"
    assert caught.value.message.startswith("table t is in use: ")
    assert "shortened" in caught.value.message
    assert caught.value.message.endswith(": drop that first")
    assert len(caught.value.message.encode()) <= MESSAGE_BYTES_MAX
