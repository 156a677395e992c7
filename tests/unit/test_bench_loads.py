from collections import Counter

from bulkgrpc.bench import drain, policy_cases, readings, trades, wide_orders
from bulkgrpc.bench.bare_copy import Baseline, encoded_chunks
from bulkgrpc.bench.model import Load
from bulkgrpc.client import Batch
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.decoding import Payload
from bulkgrpc.datasets.rows import to_rows
from bulkgrpc.kafka.partition import partition_of
from bulkgrpc.model import JobCounts, Kind
from bulkgrpc.v1.ingest_pb2 import RecordBatch

LOAD = Load.of(8_000, 100, 2, 1, 40)


def test_each_tenant_has_a_partition_of_its_own() -> None:
    tenants = readings.tenants_of(LOAD)

    assert [partition_of(tenant, LOAD.tenants) for tenant in tenants] == list(range(LOAD.tenants))


def test_readings_have_unique_and_known_keys() -> None:
    codec = BatchCodec(readings.dataset())
    payloads = readings.batches(codec, 0, 2_500, 1_000)
    rows = to_rows(codec, [Payload("t", len(RecordBatch.FromString(p).records), p) for p in payloads]).table

    keys = set(zip(rows.column("sensor_id").to_pylist(), rows.column("sampled_at").to_pylist(), strict=True))
    assert len(keys) == 2_500
    assert readings.key_of(2_499) in keys


def test_the_drain_appends_numbered_and_sealed_jobs_to_the_topic() -> None:
    codec = BatchCodec(readings.dataset())
    payloads = readings.batches(codec, 0, LOAD.tenant_rows, LOAD.batch_rows)
    planned = drain.plan(codec.dataset, readings.tenants_of(LOAD), "run", payloads, LOAD.batch_rows)

    batches = [item for item in planned if item[1].kind is Kind.BATCH]
    parsed = [RecordBatch.FromString(payload) for _, _, payload in batches]
    assert [batch.sequence for batch in parsed] == [message.sequence for _, message, _ in batches]
    assert sum(len(batch.records) for batch in parsed) == LOAD.rows
    assert [message.kind for _, message, _ in planned[-LOAD.tenants :]] == [Kind.SEAL] * LOAD.tenants
    assert Counter(partition for partition, _, _ in planned) == Counter(
        dict.fromkeys(range(LOAD.tenants), LOAD.tenant_rows // LOAD.batch_rows + 1)
    )


def test_the_bare_copy_writes_chunks_of_the_workers_size() -> None:
    load = Load.of(100_000, 1_000, 2, 1, 40)
    chunks = encoded_chunks(Baseline(readings.dataset()), load, readings.tenants_of(load)[:2])

    assert len(chunks) == 3  # 50,000 rows in chunks of 20,000
    assert all(chunk.startswith(b"PGCOPY\n\xff\r\n\0") for chunk in chunks)


def test_a_trade_has_about_the_bytes_that_the_memory_run_assumes() -> None:
    codec = BatchCodec(trades.dataset())
    batches: list[Batch] = list(trades.batches(codec, trades.columns_of(codec, 100), 3))

    assert all(abs(len(batch.payload) / 100 - trades.ROW_BYTES) < 60 for batch in batches)
    rows = to_rows(codec, [Payload("t", batch.records, batch.payload) for batch in batches]).table
    assert sorted(rows.column("trade_id").to_pylist()) == list(range(300))


def test_wide_orders_have_twenty_fields_and_unique_keys() -> None:
    workers = (item for item in policy_cases.cases() if item.writer == "workers")
    (wide,) = (item for item in workers if item.batches is wide_orders.batches)
    codec = BatchCodec(wide.dataset)
    (payload,) = wide_orders.batches(codec, 0, 1_000, 1_000)
    rows = to_rows(codec, [Payload("t", 1_000, payload)]).table

    assert len(codec.record_schema) == 20
    assert sorted(rows.column("order_id").to_pylist()) == list(range(1_000))
    assert rows.column("fills")[7].as_py() == [7, 7]


def test_a_cases_expected_counts_are_exact() -> None:
    load = Load.of(8_000, 100, 2, 1, 0)
    found = {item.name: item.counts(load) for item in policy_cases.cases() if item.writer == "workers"}

    assert found["ignore: all keys new"] == JobCounts(8_000, 8_000)
    assert found["append: no key"] == JobCounts(8_000, 8_000)
    assert found["ignore: all keys exist"] == JobCounts(8_000, 0, 8_000)
    assert found["update: all keys exist"] == JobCounts(8_000, 8_000)
    assert found["dedupe: all records new"] == JobCounts(8_000, 8_000)
    assert found["dedupe: all records known"] == JobCounts(8_000, 0, 8_000)
    assert found["rejected by the table: 1 %"] == JobCounts(8_000, 7_920, 0, 80)
