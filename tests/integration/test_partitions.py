"""Tables partitioned by time: rows of any time are written at once, and find a partition of their own later."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from google.protobuf import message_factory
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.ddl import create_periods, create_table, of_period, other_times
from bulkgrpc.datasets.decoding import Payload
from bulkgrpc.datasets.definition import Dataset, find_message
from bulkgrpc.datasets.evolution import Incompatible
from bulkgrpc.datasets.periods import PartitionPeriod, period_of
from bulkgrpc.datasets.rows import Rows, to_rows
from bulkgrpc.datasets.table_fit import TableMisfit
from bulkgrpc.postgres.catalog import Catalog
from bulkgrpc.postgres.connection import connect
from bulkgrpc.postgres.partitions import maintain_partitions
from bulkgrpc.postgres.writers.savepoint import in_savepoint
from bulkgrpc.postgres.writers.table import TableWriter
from tests.support import examples
from tests.support.database import Connection, count, register

TODAY = date(2026, 3, 15)
PROTO = """syntax = "proto3"; import "bulkgrpc/v1/options.proto"; import "google/protobuf/timestamp.proto";
import "google/type/date.proto";
message E { option (bulkgrpc.v1.dataset) = {table: "events" key: ["id", "at"] conflict_policy: CONFLICT_POLICY_%s
  partition_by_time: {field: "at" period: PARTITION_PERIOD_%s}}; int64 id = 1; %s at = 2; string note = 3; }"""
TIMES = {1: date(2026, 3, 15), 2: date(2026, 5, 31), 3: date(1999, 12, 31), 4: date(2200, 1, 1), 5: date(1999, 12, 1)}


def made(
    folder: Path, policy: str = "IGNORE", period: str = "MONTH", kind: str = "google.protobuf.Timestamp"
) -> Dataset:
    file = folder / "events.proto"
    file.write_text(PROTO % (policy, period, kind))
    return examples.compiled(file, "E")


def rows_of(dataset: Dataset, times: dict[int, date], note: str = "") -> Rows:
    message: Any = message_factory.GetMessageClass(find_message(dataset.descriptors, "E"))
    records = []
    for number, day in times.items():
        record = message(id=number, note=note)
        if dataset.columns[2].type == "date":
            record.at.year, record.at.month, record.at.day = day.year, day.month, day.day
        else:
            record.at.FromDatetime(datetime(day.year, day.month, day.day, tzinfo=UTC))
        records.append(record.SerializeToString())
    return to_rows(BatchCodec(dataset), [Payload("acme", len(records), examples.batch_of(records))])


def write(connection: Connection, rows: Rows, writer: TableWriter | None = None) -> tuple[int, int]:
    """Write rows; return how many are written and rejected."""
    with connection.transaction():
        done = (writer or TableWriter()).write(connection, rows, rows.payload)
    return int(done.written.sum()), len(done.rejected)


def where(connection: Connection) -> dict[int, str]:
    """Of each row, the last part of its partition's name."""
    found = connection.execute("SELECT id, tableoid::regclass::text FROM events").fetchall()
    return {number: name.rpartition("_")[2] for number, name in found}


@pytest.fixture(params=["google.protobuf.Timestamp", "google.type.Date"])
def dataset(request: pytest.FixtureRequest, connection: Connection, tmp_path: Path) -> Dataset:
    """A dataset whose table has its partitions of about TODAY, in a session whose days are not UTC's."""
    connection.execute("SET TimeZone = 'America/Los_Angeles'")
    dataset = made(tmp_path, kind=request.param)
    register(connection, dataset)
    for statement in create_periods(dataset, TODAY):
        connection.execute(statement)
    return dataset


def test_a_row_of_any_time_is_written_and_stray_ones_get_a_partition_of_their_own(
    connection: Connection, dataset: Dataset
) -> None:
    assert write(connection, rows_of(dataset, TIMES)) == (5, 0)
    at_first = {1: "20260301", 2: "20260501", 3: "other", 4: "other", 5: "other"}
    assert where(connection) == at_first
    assert maintain_partitions(connection, TODAY).created == 1
    assert where(connection) == {**at_first, 3: "19991201", 5: "19991201"}, "2200 is not the time of anything yet"
    assert maintain_partitions(connection, TODAY) == maintain_partitions(connection, TODAY)
    assert maintain_partitions(connection, TODAY).created == 0
    assert maintain_partitions(connection, date(2026, 4, 1)).created == 1
    assert count(connection, "events") == 5


@pytest.mark.parametrize(("policy", "outcome"), [("IGNORE", (1, 0)), ("UPDATE", (6, 0)), ("REJECT", (1, 5))])
def test_a_key_is_known_in_whichever_partition_it_is(
    connection: Connection, tmp_path: Path, policy: str, outcome: tuple[int, int]
) -> None:
    dataset = made(tmp_path, policy)
    register(connection, dataset)
    for statement in create_periods(dataset, TODAY):
        connection.execute(statement)
    writer = TableWriter()
    assert write(connection, rows_of(dataset, TIMES), writer) == (5, 0)
    times = {**TIMES, 6: date(1999, 12, 31)}
    assert write(connection, rows_of(dataset, times, "again"), writer) == outcome
    maintain_partitions(connection, TODAY)
    last = {**times, 7: date(1999, 12, 31)}
    assert write(connection, rows_of(dataset, last, "at last"), writer)[0] == (7 if policy == "UPDATE" else 1)
    notes: dict[int, str] = dict(connection.execute("SELECT id, note FROM events").fetchall())
    assert notes == (
        dict.fromkeys(last, "at last") if policy == "UPDATE" else {**dict.fromkeys(TIMES, ""), 6: "again", 7: "at last"}
    )


def test_a_round_gives_up_where_a_writer_is_at_the_default_partition_and_the_next_one_makes_it(
    connection: Connection, database: str, dataset: Dataset
) -> None:
    with connect(database, "tests") as writer, writer.transaction():
        TableWriter().write(writer, rows := rows_of(dataset, TIMES), rows.payload)
        begun_s = time.monotonic()
        kept = maintain_partitions(connection, date(2026, 4, 1))
        assert time.monotonic() - begun_s < 5
        assert (kept.created, len(kept.not_created)) == (0, 1)
        assert "from 2026-07-01 on" in kept.not_created[0]
    assert maintain_partitions(connection, date(2026, 4, 1)).created == 2
    assert where(connection)[3] == "19991201"


def test_rows_on_their_way_while_a_partition_is_attached_go_to_it(
    connection: Connection, database: str, dataset: Dataset
) -> None:
    """The COPY began when the rows' time had no partition, and has not touched the default one yet."""
    tries = 0

    def copy() -> None:
        nonlocal tries
        tries += 1
        with connection.cursor().copy("COPY events (tenant, id, at, note) FROM STDIN") as copying:
            # More than is buffered before it is sent: PostgreSQL has begun when the partition is made.
            for number in range(20_000):
                copying.write(f"acme\t{100 + number}\t2026-03-15\tx\n")
            if tries == 1:
                with connect(database, "other") as other:
                    other.execute("SET lock_timeout = '2s'")
                    period = period_of(date(1999, 12, 1), PartitionPeriod.MONTH)
                    statement = "CREATE TABLE {} (LIKE events INCLUDING ALL); ALTER TABLE events ATTACH PARTITION {} "
                    name = of_period(dataset, period).as_string(None)
                    bounds = "FOR VALUES FROM ('1999-12-01 00:00:00+00') TO ('2000-01-01 00:00:00+00')"
                    other.execute((statement.format(name, name) + bounds).encode())
            copying.write("acme\t3\t1999-12-15\ty\n")

    with connection.transaction():
        in_savepoint(connection, copy)
    assert (tries, count(connection, "events"), where(connection)[3]) == (2, 20_001, "19991201")


def test_rows_that_a_trigger_or_a_foreign_key_would_see_deleted_stay_where_they_are(
    connection: Connection, dataset: Dataset
) -> None:
    connection.execute(
        "CREATE TABLE mine (tenant text, id bigint, at timestamptz)"
        if dataset.columns[2].type != "date"
        else "CREATE TABLE mine (tenant text, id bigint, at date)"
    )
    connection.execute("ALTER TABLE mine ADD FOREIGN KEY (tenant, id, at) REFERENCES events ON DELETE CASCADE")
    write(connection, rows_of(dataset, TIMES))
    connection.execute("INSERT INTO mine SELECT tenant, id, at FROM events")
    kept = maintain_partitions(connection, date(2026, 4, 1))
    assert (kept.created, where(connection)[3], count(connection, "mine")) == (1, "other", 5)


def test_a_partition_that_somebody_made_is_used_and_one_that_is_missing_blocks_the_table(
    connection: Connection, dataset: Dataset
) -> None:
    other = other_times(dataset).as_string(None)
    connection.execute("CREATE TABLE century PARTITION OF events FOR VALUES FROM ('1900-01-01') TO ('2000-01-01')")
    connection.execute(f"ALTER TABLE events DETACH PARTITION {other}".encode())
    # Nothing is rejected because a default partition is detached for a while.
    with pytest.raises(TableMisfit, match="default partition is missing"):
        write(connection, rows_of(dataset, TIMES))
    assert maintain_partitions(connection, date(2026, 4, 1)).created == 1
    connection.execute(f"ALTER TABLE events ATTACH PARTITION {other} DEFAULT".encode())
    assert write(connection, rows_of(dataset, TIMES)) == (5, 0)
    assert where(connection)[3] == "century"


async def test_a_table_is_registered_with_its_partitions_and_another_period_is_refused(
    connection: Connection, database: str, tmp_path: Path
) -> None:
    async with AsyncConnectionPool(database, kwargs={"autocommit": True}) as pool:
        catalog, daily = Catalog(pool), made(tmp_path, period="DAY")
        planned = await catalog.plan(daily)
        assert len(planned.statements) == 1 + 9
        await catalog.register(daily)
        today = datetime.now(UTC).date()
        assert write(connection, rows_of(daily, {1: today})) == (1, 0)
        assert where(connection) == {1: f"{today:%Y%m%d}"}
        with pytest.raises(Incompatible, match='partition_by_time of dataset events is "at" by day') as refused:
            await catalog.register(made(tmp_path, period="WEEK"))
        assert refused.value.field == "partition_by_time"


def test_a_table_that_cannot_be_kept_does_not_stop_the_others(connection: Connection, tmp_path: Path) -> None:
    register(connection, made(tmp_path))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "events.proto").write_text(
        (PROTO % ("IGNORE", "MONTH", "google.type.Date")).replace('"events"', '"a"')
    )
    register(connection, examples.compiled(tmp_path / "a" / "events.proto", "E"))
    connection.execute("UPDATE bulk.datasets SET message_type = 'Gone' WHERE dataset = 'a'")
    kept = maintain_partitions(connection, TODAY)
    assert (kept.created, len(kept.not_created)) == (5, 1)
    assert "Gone" in kept.not_created[0]


def test_a_table_without_partitions_by_time_is_left_alone(connection: Connection) -> None:
    register(connection, examples.readings())
    assert maintain_partitions(connection, TODAY).created == 0
    with pytest.raises(psycopg.errors.DuplicateTable):
        connection.execute(create_table(examples.readings()))
