"""Every refusal of a stream: its code, its reason, its field, its way out."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from bulkgrpc import limits
from bulkgrpc.errors import Reason
from bulkgrpc.ingest import admission
from bulkgrpc.v1 import datasets_pb2, ingest_pb2, jobs_pb2
from tests.integration.server_peer import (
    DATASET,
    DEADLINE_S,
    Peer,
    Request,
    ServeWith,
    a_key,
    batch,
    eventually,
    finish,
    header,
    next_answer,
    peer,
    refusal,
    registration,
    rest,
)

pytest_plugins = ["tests.integration.server_parts"]

INVALID = grpc.StatusCode.INVALID_ARGUMENT
TOO_MUCH = grpc.StatusCode.RESOURCE_EXHAUSTED
OUT_OF_ORDER = grpc.StatusCode.OUT_OF_RANGE
options = jobs_pb2.JobOptions
MANY_LABELS = {f"k{number}": "v" for number in range(limits.LABELS_MAX + 1)}


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        ([], (INVALID, Reason.EMPTY_STREAM, "", "header first")),
        ([batch(0)], (INVALID, Reason.MISSING_HEADER, "", "JobHeader first")),
        ([Request()], (INVALID, Reason.MISSING_HEADER, "", "JobHeader first")),
        ([header(), header()], (INVALID, Reason.MISSING_BATCH, "", "RecordBatch")),
        ([header(), Request()], (INVALID, Reason.MISSING_BATCH, "", "RecordBatch")),
        ([header(), batch(1)], (OUT_OF_ORDER, Reason.SEQUENCE_GAP, "batch.sequence", "send batch 0")),
        ([header(), batch(0), batch(2)], (OUT_OF_ORDER, Reason.SEQUENCE_GAP, "batch.sequence", "send batch 1")),
        ([header(), batch(0), batch(0)], (OUT_OF_ORDER, Reason.SEQUENCE_BACKWARD, "batch.sequence", "send batch 1")),
        ([header(), batch(-1)], (INVALID, Reason.INVALID_FIELD, "batch.sequence", "below 0")),
        ([header(dataset="datasets/none")], (grpc.StatusCode.NOT_FOUND, Reason.DATASET_NOT_FOUND, "header.dataset",
         "bulkgrpc datasets register")),
        ([header(dataset="weather")], (INVALID, Reason.INVALID_FIELD, "header.dataset", "datasets/NAME")),
        ([header(idempotency_key="a b")], (INVALID, Reason.INVALID_FIELD, "header.idempotency_key", "128")),
        ([header(idempotency_key="k" * 129)], (INVALID, Reason.INVALID_FIELD, "header.idempotency_key", "128")),
        ([header(session_id="s" * 65)], (INVALID, Reason.INVALID_FIELD, "header.session_id", "64")),
        ([header(first_sequence=-1)], (INVALID, Reason.INVALID_FIELD, "header.first_sequence", "below 0")),
        ([header(labels=MANY_LABELS)], (INVALID, Reason.INVALID_FIELD, "header.labels", "16")),
        ([header(labels={"k": "v" * 256})], (INVALID, Reason.INVALID_FIELD, "header.labels[k]", "255")),
        ([header(options=options(rejections_max=-1))], (INVALID, Reason.INVALID_FIELD, "header.options.rejections_max",
         "below 0")),
        *(
            ([header(options=options(time_to_live=Duration(seconds=seconds, nanos=nanos)))],
             (INVALID, Reason.INVALID_FIELD, "header.options.time_to_live", "1 s to 366 days"))
            for seconds, nanos in ((0, 999_999_999), (-1, 0), (10**11, 0), (0, -1))
        ),
        ([header(labels={"k" * 64: "v"})], (INVALID, Reason.INVALID_FIELD, "header.labels", "63")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("unary", [False, True])
async def test_a_wrong_stream_is_refused_with_its_reason(
    client: Peer, requests: list[Request], expected: tuple[grpc.StatusCode, Reason, str, str], unary: bool
) -> None:
    code, reason, field, says = expected
    call = client.submit(*requests) if unary else client.whole(*requests)
    found, refused = await refusal(call)
    assert (found, refused.reason, refused.field) == (code, reason, field)
    assert says in refused.message
    assert "\n" not in refused.message


@pytest.fixture
async def small(serve_with: ServeWith) -> AsyncIterator[Peer]:
    """A client of a server that takes 4 KiB or 10 records a batch."""
    async with serve_with(batch_bytes_max=4096, batch_records_max=10) as (_, one):
        yield one


async def test_a_batch_of_too_many_bytes_is_refused_naming_the_limit(small: Peer) -> None:
    large = Request(batch=ingest_pb2.RecordBatch(records=[b"x" * 5000]))
    code, refused = await refusal(small.whole(header(), large))
    assert (code, refused.reason, refused.field) == (TOO_MUCH, Reason.BATCH_TOO_LARGE, "batch")
    assert "4096" in refused.message
    assert "smaller batches" in refused.message


async def test_a_batch_of_too_many_records_is_refused_naming_the_limit(small: Peer) -> None:
    code, refused = await refusal(small.whole(header(), batch(0, records=11)))
    assert (code, refused.reason, refused.field) == (TOO_MUCH, Reason.BATCH_TOO_LARGE, "batch.records")
    assert "11 records" in refused.message
    assert "limit of 10" in refused.message


async def test_a_message_over_four_mebibytes_is_refused_by_grpc(client: Peer) -> None:
    large = Request(batch=ingest_pb2.RecordBatch(records=[b"x" * 5 * 1024 * 1024]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.whole(header(), large)
    assert caught.value.code() is TOO_MUCH


async def raw_stream(client: Peer, *messages: bytes) -> None:
    call: Any = client.channel.stream_stream("/bulkgrpc.v1.IngestService/StreamRecords")
    async for _ in call(iter(messages), timeout=DEADLINE_S):
        pass


@pytest.mark.parametrize("bad", [b"\xff", b"\x12\x05ab", b"\x12\x02\x12\x7f", b"\x12\x0b\x0a" + b"\xff" * 9 + b"\x01"])
async def test_bytes_that_are_no_batch_are_refused_as_malformed(client: Peer, bad: bytes) -> None:
    code, refused = await refusal(raw_stream(client, header().SerializeToString(), bad))
    assert (code, refused.reason) == (INVALID, Reason.MALFORMED_BATCH)


async def test_a_compressed_bomb_is_refused(client: Peer) -> None:
    bomb = Request(batch=ingest_pb2.RecordBatch(records=[bytes(3 * 1024 * 1024)]))
    assert len(zlib.compress(bomb.SerializeToString())) < 10_000
    call = client.stream(iter([header(), bomb]), compression=grpc.Compression.Gzip)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [answer async for answer in call]
    assert caught.value.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL, TOO_MUCH)
    assert (await client.whole(header()))[-1].HasField("sealed")


async def test_a_length_that_lies_is_refused_before_it_is_read(client: Peer) -> None:
    host, _, port = client.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">I", 0xFFFFFFFF)[1:] + b"\0\0\0\0\0\0")
    assert await asyncio.wait_for(reader.read(1024), DEADLINE_S)
    writer.close()
    assert (await client.whole(header()))[-1].HasField("sealed")


async def test_the_same_key_with_another_request_is_a_conflict(client: Peer) -> None:
    key = a_key()
    await client.datasets.RegisterDataset(registration("Trade", "trades.proto"))
    name = (await client.submit(header(idempotency_key=key, labels={"a": "1"}), batch(0))).job.name
    for other in (
        header(idempotency_key=key, labels={"a": "2"}),
        header(idempotency_key=key, labels={"a": "1"}, dataset="datasets/trades"),
    ):
        code, refused = await refusal(client.whole(other))
        assert (code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, Reason.IDEMPOTENCY_CONFLICT)
        assert refused.field == "header.idempotency_key"
        assert name in refused.message


async def test_the_same_key_with_other_options_is_a_conflict_that_names_them(client: Peer) -> None:
    key = a_key()
    await client.submit(header(idempotency_key=key, options=options(atomic=True)), batch(0))
    for other in (header(idempotency_key=key), header(idempotency_key=key, options=options(rejections_max=1))):
        code, refused = await refusal(client.whole(other))
        assert (code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, Reason.IDEMPOTENCY_CONFLICT)
        assert "other options" in refused.message


async def test_a_conflict_is_told_even_while_another_stream_holds_the_job(client: Peer) -> None:
    key = a_key()
    call = client.stream()
    await call.write(header(idempotency_key=key))
    await next_answer(call)
    code, refused = await refusal(client.whole(header(idempotency_key=key, labels={"a": "2"})))
    assert (code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, Reason.IDEMPOTENCY_CONFLICT)
    call.cancel()


async def test_the_stream_after_the_last_that_may_be_open_is_refused_at_once_and_the_others_go_on(
    serve_with: ServeWith,
) -> None:
    async with serve_with(streams_max=200) as (running, client):
        # One tenant never has the last slots: they are for others.
        other = replace(client, metadata=[("bulkgrpc-tenant", "other")])
        calls = [*(client.stream() for _ in range(180)), *(other.stream() for _ in range(20))]
        for call in calls:
            await call.write(header())
        await asyncio.gather(*map(next_answer, calls))
        assert running.admission.open_streams == 200
        async with asyncio.timeout(2):
            code, refused = await refusal(client.whole(header()))
        assert (code, refused.reason) == (TOO_MUCH, Reason.TOO_MANY_STREAMS)
        assert refused.retry_after_s > 0
        for call in calls:
            await call.write(batch(0))
            await finish(call, 1)
        for answers in await asyncio.gather(*map(rest, calls)):
            assert answers[-1].sealed.job.counts.accepted == 2
        assert (await client.whole(header()))[-1].HasField("sealed")


async def test_a_foreign_job_and_an_unknown_one_are_told_apart_by_nobody(serve_with: ServeWith) -> None:
    async with serve_with() as (running, _), peer(running.address, "one") as one, peer(running.address, "two") as two:
        name = (await one.submit(header(), batch(0))).job.name
        assert (await one.job(name)).name == name
        code, refused = await refusal(two.job(name))
        assert (code, refused.reason) == (grpc.StatusCode.NOT_FOUND, Reason.JOB_NOT_FOUND)
        # The tenant in the name is the caller's, the job is not.
        code, refused = await refusal(two.job(name.replace("tenants/one", "tenants/two")))
        assert (code, refused.reason) == (grpc.StatusCode.NOT_FOUND, Reason.JOB_NOT_FOUND)
        listed = await two.jobs.ListJobs(jobs_pb2.ListJobsRequest(), metadata=two.metadata)
        assert name not in [job.name for job in listed.jobs]
        call = two.jobs.ListJobs(jobs_pb2.ListJobsRequest(parent="tenants/one"), metadata=two.metadata)
        code, refused = await refusal(call)
        assert (code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, Reason.FOREIGN_TENANT)


async def test_jobs_are_listed_newest_first_by_page(serve_with: ServeWith) -> None:
    async with serve_with() as (running, _), peer(running.address, f"t{a_key()}") as client:
        names = [(await client.submit(header())).job.name for _ in range(5)]
        found, token, pages = [], "", 0
        while pages == 0 or token:
            page = await client.jobs.ListJobs(
                jobs_pb2.ListJobsRequest(page_size=2, page_token=token), metadata=client.metadata
            )
            found += [job.name for job in page.jobs]
            token, pages = page.next_page_token, pages + 1
        assert (found, pages) == (names[::-1], 3)


async def test_datasets_are_registered_read_and_listed(client: Peer) -> None:
    await client.datasets.RegisterDataset(registration("Weather", "flights.proto"))
    answer = await client.datasets.GetDataset(datasets_pb2.GetDatasetRequest(name="datasets/weather"))
    assert answer.dataset.message_type == "examples.v1.Weather"
    assert answer.dataset.columns[0].name == "tenant"
    assert answer.dataset.descriptors.file
    first = await client.datasets.ListDatasets(datasets_pb2.ListDatasetsRequest(page_size=1))
    assert len(first.datasets) == 1
    assert not first.datasets[0].HasField("descriptors")
    second = await client.datasets.ListDatasets(
        datasets_pb2.ListDatasetsRequest(page_size=1, page_token=first.next_page_token)
    )
    assert second.datasets[0].name > first.datasets[0].name


@pytest.mark.parametrize(
    ("service", "request_", "field"),
    [
        ("jobs.GetJob", jobs_pb2.GetJobRequest(name="jobs/1"), "name"),
        ("jobs.ListJobs", jobs_pb2.ListJobsRequest(page_size=1001), "page_size"),
        ("jobs.ListJobs", jobs_pb2.ListJobsRequest(page_size=-1), "page_size"),
        ("jobs.ListJobs", jobs_pb2.ListJobsRequest(page_token="bm9uZQ=="), "page_token"),
        ("jobs.ListJobs", jobs_pb2.ListJobsRequest(page_token="%"), "page_token"),
        ("jobs.ListJobs", jobs_pb2.ListJobsRequest(parent="default"), "parent"),
        ("datasets.GetDataset", datasets_pb2.GetDatasetRequest(name="weather"), "name"),
        ("datasets.ListDatasets", datasets_pb2.ListDatasetsRequest(page_token="Lw=="), "page_token"),
        ("datasets.RegisterDataset", datasets_pb2.RegisterDatasetRequest(), "message_type"),
        ("datasets.RegisterDataset", registration("Nothing"), "message_type"),
    ],
)
async def test_a_wrong_unary_request_is_refused_naming_the_field(
    client: Peer, service: str, request_: object, field: str
) -> None:
    part, _, method = service.partition(".")
    code, refused = await refusal(getattr(getattr(client, part), method)(request_))
    assert (code, refused.field) == (INVALID, field)


async def test_an_unknown_dataset_is_not_found(client: Peer) -> None:
    call = client.datasets.GetDataset(datasets_pb2.GetDatasetRequest(name="datasets/none"))
    code, refused = await refusal(call)
    assert (code, refused.reason) == (grpc.StatusCode.NOT_FOUND, Reason.DATASET_NOT_FOUND)


async def test_a_tenant_that_is_none_is_refused(client: Peer) -> None:
    client.metadata = [("bulkgrpc-tenant", "a/b")]
    code, refused = await refusal(client.whole(header(dataset=DATASET)))
    assert (code, refused.field) == (INVALID, "bulkgrpc-tenant")


async def test_streams_that_send_nothing_give_their_slots_to_another_tenant_and_keep_their_jobs(
    serve_with: ServeWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "IDLE_AFTER_S", 0.2)
    async with serve_with(streams_max=20) as (_, client):
        first = replace(client, metadata=[("bulkgrpc-tenant", "first")])
        idle = [client.stream() for _ in range(18)]
        for call in (*idle, *(others := [first.stream() for _ in range(2)])):
            await call.write(header(idempotency_key=a_key()))
        names = [(await next_answer(call)).opened.job.name for call in (*idle, *others)]

        async def admitted() -> bool:
            second = replace(client, metadata=[("bulkgrpc-tenant", "second")])
            try:
                return (await second.whole(header(), batch(0)))[-1].HasField("sealed")
            except grpc.aio.AioRpcError as error:
                if error.code() is not TOO_MUCH:
                    raise
                return False

        await eventually(admitted)
        ended = [call for call in idle if call.done()]
        assert len(ended) == 1
        code, refused = await refusal(next_answer(ended[0]))
        assert (code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.IDLE_STREAM)
        assert (await client.job(names[idle.index(ended[0])])).state == jobs_pb2.JOB_STATE_OPEN
        for call in (*idle, *others):
            call.cancel()
