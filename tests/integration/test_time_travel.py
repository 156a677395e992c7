"""PostgreSQL comes back older than what was acknowledged: what is read again, what is gone, and what operators see."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import signal
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from typer.testing import CliRunner, Result

from bulkgrpc.cli.app import app
from bulkgrpc.client import AsyncBulkClient, AsyncJobHandle, ClientConfig, DatasetState, Job, JobOptions, JobState
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.postgres import schema
from bulkgrpc.stack import Stack
from tests.support import examples
from tests.support.ends import end_offsets
from tests.support.processes import Service, service
from tests.support.restore import PostgresImages
from tests.support.waiting import eventually, wait_for

PLAIN = JobOptions()
ROWS = 10
PARTITIONS = 4
EVOLVED = """
syntax = "proto3";
package examples.v1;
import "bulkgrpc/v1/options.proto";
import "google/protobuf/timestamp.proto";
message SensorReading {
  option (bulkgrpc.v1.dataset) = {table: "sensor_readings" key: ["sensor_id", "sampled_at"]};
  string sensor_id = 1;
  double value = 2;
  google.protobuf.Timestamp sampled_at = 3;
  string unit = 4;
}
"""


@dataclass(frozen=True, slots=True)
class Site:
    """A service on a stack of its own: a database, a topic, a server, a worker."""

    stack: Stack
    environment: Mapping[str, str]
    running: Service
    images: PostgresImages

    @property
    def tenant(self) -> str:
        """Of this test alone: the tests share Redis."""
        return self.environment["BULKGRPC_TOPIC"]

    @property
    def postgres(self) -> str:
        return self.environment["BULKGRPC_POSTGRES"]

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.postgres, autocommit=True) as connection:
            return connection.execute(statement.encode(), values).fetchall()

    def values(self, table: str = "sensor_readings") -> list[float]:
        """The values in a table: one for each record that was written."""
        statement = sql.SQL("SELECT value FROM {} ORDER BY 1").format(sql.Identifier(table)).as_string(None)
        return [value for (value,) in self.rows(statement)]

    def caught_up(self) -> bool:
        try:
            found = dict(self.rows("SELECT partition, next_offset FROM bulk.offsets"))
        except psycopg.Error:
            return False
        ends = end_offsets(self.stack.addresses.kafka, self.environment["BULKGRPC_TOPIC"], PARTITIONS)
        return all(found.get(partition, 0) == end for partition, end in ends.items())

    def command(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments), env={**self.environment, "COLUMNS": "300"})

    def doctor(self) -> dict[str, Any]:
        return dict(json.loads(self.command("doctor", "--json").stdout))

    def events(self, name: str) -> int:
        """How often the worker logged an event."""
        return self.running.workers[0].log.read_text().count(name)

    async def restore(self, image: Path) -> None:
        """Take PostgreSQL back, and wait until the workers have read again what Kafka has."""
        await asyncio.to_thread(self.images.restore, image)
        await eventually(self.caught_up, 60)


@pytest.fixture
def site(own_stack: Stack, tmp_path: Path) -> Iterator[Site]:
    name = f"travel_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(own_stack.addresses.postgres, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    own = {
        "BULKGRPC_POSTGRES": make_conninfo(own_stack.addresses.postgres, dbname=name),
        "BULKGRPC_TOPIC": name,
        "BULKGRPC_GROUP": name,
        "BULKGRPC_DEAD_LETTER_TOPIC": f"{name}-dead",
    }
    environment = {**own_stack.addresses.environment(), **own}
    schema.migrate(environment["BULKGRPC_POSTGRES"])
    with service(environment, tmp_path, workers=1) as running:
        found = Site(own_stack, {**environment, "BULKGRPC_SERVER": running.address}, running, PostgresImages(own_stack))
        yield found
        assert [process.ended for process in (running.server, *running.workers)] == [None, None]


@pytest.fixture
async def client(site: Site) -> AsyncIterator[AsyncBulkClient]:
    async with AsyncBulkClient(
        site.running.address, tenant=site.tenant, config=ClientConfig(retry_cap_s=1)
    ) as connected:
        await register(connected, examples.readings())
        yield connected


async def register(client: AsyncBulkClient, dataset: Dataset) -> Dataset:
    return await client.register_dataset(dataset.descriptors, dataset.message_type)


async def load(client: AsyncBulkClient, key: str, start: int, dataset: str = "sensor_readings") -> AsyncJobHandle:
    """Submit a job of ROWS records, and wait for its end."""
    job = await client.submit(dataset, [examples.reading_batch(start, ROWS)], idempotency_key=key)
    await job.wait(deadline_s=30)
    return job


@dataclass
class Slow:
    """A submission of two batches with a pause between them: `first` is set once the first one is acknowledged."""

    client: AsyncBulkClient
    key: str
    start: int
    dataset: str = "sensor_readings"
    options: JobOptions = PLAIN
    first: asyncio.Event = field(default_factory=asyncio.Event)
    resumes: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self) -> asyncio.Task[AsyncJobHandle]:
        return asyncio.create_task(
            self.client.submit(
                self.dataset,
                self._batches(),
                idempotency_key=self.key,
                options=self.options,
                on_progress=lambda progress: self.first.set() if progress.acknowledged_batches else None,
            )
        )

    async def _batches(self) -> AsyncIterator[Any]:
        yield examples.reading_batch(self.start, ROWS)
        await self.resumes.wait()
        yield examples.reading_batch(self.start + ROWS, ROWS)


def numbers(*starts: int, rows: int = ROWS) -> list[float]:
    return [0.5 * (start + n) for start in sorted(starts) for n in range(rows)]


def counts(job: Job) -> tuple[JobState, int, int, int, int]:
    found = job.counts
    return job.state, found.accepted, found.written, found.rejected, found.duplicate


async def test_a_worker_without_work_notices_and_reads_again(site: Site, client: AsyncBulkClient) -> None:
    await load(client, "before", 0)
    image = await asyncio.to_thread(site.images.back_up)
    # Until Kafka has a heartbeat that the backup does not have.
    after = await load(client, "after", 100)
    known = await asyncio.to_thread(site.doctor)
    assert [check["ok"] for check in known["checks"]] == [True] * 4
    ended = counts(await after.get())
    await site.restore(image)
    assert site.values() == numbers(0, 100)
    assert counts(await after.get()) == ended
    assert site.events("postgres_restarted")
    assert site.events("ledger_older") == 1
    found = await asyncio.to_thread(site.doctor)
    assert [check["ok"] for check in found["checks"]] == [True] * 4
    (restore,) = found["restores"]
    assert restore["found"]["spans"]
    said = await asyncio.to_thread(site.command, "doctor")
    assert said.exit_code == 0
    assert "PostgreSQL came back older than what was applied: workers read partition" in said.stdout
    # New jobs are written as before.
    await load(client, "later", 200)
    assert site.values() == numbers(0, 100, 200)


async def test_a_restart_that_loses_nothing_is_no_restore(site: Site, client: AsyncBulkClient) -> None:
    await load(client, "before", 0)
    part = site.stack.part("postgres")
    await asyncio.to_thread(part.kill)
    await asyncio.to_thread(part.start)
    await load(client, "after", 100)
    assert site.values() == numbers(0, 100)
    assert not site.events("ledger_older")
    assert site.doctor()["restores"] == []


async def test_a_worker_that_starts_after_the_restore_notices_it(site: Site, client: AsyncBulkClient) -> None:
    await load(client, "before", 0)
    image = await asyncio.to_thread(site.images.back_up)
    await load(client, "after", 100)
    (worker,) = site.running.workers
    worker.kill(signal.SIGTERM)
    await asyncio.to_thread(site.images.restore, image)
    found = await asyncio.to_thread(site.doctor)
    (ledger,) = [check for check in found["checks"] if check["check"] == "ledger"]
    assert not ledger["ok"]
    assert site.command("doctor").exit_code == 1
    worker.start()
    await eventually(site.caught_up)
    assert site.values() == numbers(0, 100)
    assert site.events("ledger_older") == 1
    assert site.command("doctor").exit_code == 0


async def test_a_promoted_standby_that_lagged_loses_nothing_that_was_acknowledged(
    site: Site, client: AsyncBulkClient
) -> None:
    await load(client, "before", 0)

    def promote() -> None:
        with standby.promoted():
            pass

    with site.images.standby() as standby:
        standby.fall_behind()
        after = await load(client, "after", 100)
        await asyncio.to_thread(promote)
    await eventually(site.caught_up, 60)
    assert site.values() == numbers(0, 100)
    assert (await after.get()).state is JobState.SUCCEEDED
    assert site.events("ledger_older") == 1
    assert ", timeline 2," in site.doctor()["checks"][1]["text"]


async def test_what_is_in_kafka_comes_back_and_what_is_not_is_gone(site: Site, client: AsyncBulkClient) -> None:
    opened, cancelled = Slow(client, "opened", 100), Slow(client, "cancelled", 200)
    submissions = opened.begin(), cancelled.begin()
    await opened.first.wait()
    await cancelled.first.wait()
    await eventually(site.caught_up)
    image = await asyncio.to_thread(site.images.back_up)

    # After the backup: a job ends, one is cancelled, one is opened and has a rejection.
    opened.resumes.set()
    finished = await submissions[0]
    await finished.wait(deadline_s=30)
    name = (await anext(aiter(await jobs_of(client, "cancelled")))).name
    assert (await client.job(name).cancel()).state is JobState.CANCELLED
    submissions[1].cancel()
    await asyncio.gather(submissions[1], return_exceptions=True)
    bad = examples.batch_of([examples.reading("S1", 1, 300.0), examples.reading("", 2, 301.0), b"\x0a\xff\x01"])
    partial = await client.submit("sensor_readings", [bad], idempotency_key="partial", labels={"run": "7"})
    await partial.wait(deadline_s=30)
    ends = [counts(await job.get()) for job in (finished, partial)]
    report = [(one.sequence, one.record_index, one.code) async for one in partial.rejections()]
    assert report
    await site.restore(image)

    # The same ends, rows and reports. What one reported in between is checked by tests/chaos.
    await eventually(lambda: site.rows("SELECT FROM bulk.jobs WHERE state >= 3")[1:] or None)
    assert [counts(await job.get()) for job in (finished, partial)] == ends
    assert [(one.sequence, one.record_index, one.code) async for one in partial.rejections()] == report
    assert (await partial.get()).labels == {"run": "7"}
    again = await client.submit("sensor_readings", [bad], idempotency_key="partial", labels={"run": "7"})
    assert again.replayed
    # A cancellation is not in Kafka.
    assert (await client.get_job(name)).state is JobState.OPEN
    assert (await client.job(name).cancel()).state is JobState.CANCELLED
    assert site.values() == sorted([*numbers(100, 110, 200), 300.0, *([301.0] if len(report) == 1 else [])])


async def jobs_of(client: AsyncBulkClient, key: str) -> AsyncIterator[Job]:
    async def found() -> AsyncIterator[Job]:
        async for job in client.list_jobs():
            if job.idempotency_key == key:
                yield job

    return found()


async def test_staged_and_parked_rows_and_remembered_hashes_are_as_they_were_and_applied_once(
    site: Site, client: AsyncBulkClient
) -> None:
    dedupe = await register(client, examples.remembered())
    await load(client, "first", 0, dedupe.name)
    atomic = Slow(client, "atomic", 500, dedupe.name, JobOptions(atomic=True))
    submission = atomic.begin()
    await atomic.first.wait()
    await client.pause_dataset("sensor_readings", reason="rebuild")
    parked = await client.submit("sensor_readings", [examples.reading_batch(0, ROWS)], idempotency_key="parked")
    await eventually(lambda: site.rows("SELECT FROM bulk.parked")[1:] or None)
    await eventually(site.caught_up)
    image = await asyncio.to_thread(site.images.back_up)

    await client.resume_dataset("sensor_readings")
    await parked.wait(deadline_s=30)
    atomic.resumes.set()
    applied = await submission
    await applied.wait(deadline_s=30)
    again = await load(client, "again", 0, dedupe.name)
    assert (await again.get()).counts.duplicate == ROWS
    await site.restore(image)

    # The dataset is paused again, as when the backup was taken.
    assert (await client.get_dataset_status("sensor_readings")).state is DatasetState.PAUSED
    await client.resume_dataset("sensor_readings")
    await parked.wait(deadline_s=30)
    assert site.values() == numbers(0)
    await applied.wait(deadline_s=30)
    await again.wait(deadline_s=30)
    assert site.values(dedupe.name) == numbers(0, 500, 510)
    assert (await again.get()).counts.duplicate == ROWS


async def test_a_key_that_was_used_again_after_a_deletion_is_that_of_the_former_job_and_says_what_is_late(
    site: Site, client: AsyncBulkClient
) -> None:
    former = await load(client, "again", 0)
    image = await asyncio.to_thread(site.images.back_up)
    await former.delete()
    later = await load(client, "again", 100)
    assert later.name == former.name
    await site.restore(image)
    assert site.values() == numbers(0)
    found = site.rows("SELECT records, code FROM bulk.late_batches")
    assert found == [(ROWS, "BATCH_CONFLICT")]
    # The worker says so after it committed.
    assert await asyncio.to_thread(wait_for, lambda: site.events("late_batches") == 1, 10)


async def test_a_version_that_was_registered_after_the_backup_is_gone_and_its_batches_are_kept(
    site: Site, client: AsyncBulkClient, tmp_path: Path
) -> None:
    (tmp_path / "evolved.proto").write_text(EVOLVED)
    evolved = examples.compiled(tmp_path / "evolved.proto", "examples.v1.SensorReading")
    image = await asyncio.to_thread(site.images.back_up)
    assert (await register(client, evolved)).version == 2
    job = await load(client, "evolved", 0)
    assert (await job.get()).counts.written == ROWS
    await site.restore(image)
    assert (await client.get_dataset("sensor_readings")).version == 1
    assert len(site.rows("SELECT FROM bulk.parked")) == 2
    assert site.values() == []
    assert (await register(client, evolved)).version == 2
    await job.wait(deadline_s=60)
    assert site.values() == numbers(0)


async def test_a_job_that_is_submitted_while_postgres_travels_is_written_once(
    site: Site, client: AsyncBulkClient
) -> None:
    """The client keeps what is not acknowledged; the server and Redis know more of the job than the older database."""
    image = await asyncio.to_thread(site.images.back_up)
    slow = Slow(client, "slow", 0)
    submission = slow.begin()
    await slow.first.wait()
    await eventually(site.caught_up)
    await asyncio.to_thread(site.images.restore, image)
    slow.resumes.set()
    job = await submission
    await job.wait(deadline_s=60)
    assert site.values() == numbers(0, 10)
    assert counts(await job.get()) == (JobState.SUCCEEDED, 2 * ROWS, 2 * ROWS, 0, 0)


def runbook(number: int) -> list[str]:
    """The commands of a shell block of the page on operations, about a PostgreSQL that came back older."""
    page = (Path(__file__).resolve().parent.parent.parent / "docs/operations.md").read_text()
    section = page.split("## PostgreSQL came back older", 1)[1].split("\n## ", 1)[0]
    return [line.strip() for line in re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[number].strip().splitlines()]


async def test_the_commands_of_the_runbook_show_and_repeat_what_was_lost(
    site: Site, client: AsyncBulkClient, tmp_path: Path
) -> None:
    (tmp_path / "readings.proto").write_text(EVOLVED)
    slow = Slow(client, "cancelled", 0)
    submission = slow.begin()
    await slow.first.wait()
    await eventually(site.caught_up)
    image = await asyncio.to_thread(site.images.back_up)
    job = (await anext(aiter(await jobs_of(client, "cancelled")))).name
    made = {"readings.proto": str(tmp_path / "readings.proto"), "JOB": job}
    repeated = [[made.get(word, word) for word in shlex.split(line)[1:]] for line in runbook(1)]
    for arguments in repeated:
        done = await asyncio.to_thread(site.command, *arguments, "--tenant", site.tenant)
        assert done.exit_code == 0, done.output
    submission.cancel()
    await asyncio.gather(submission, return_exceptions=True)
    await site.restore(image)

    await eventually(lambda: site.command("doctor").exit_code == 0)
    for line in runbook(0):
        done = await asyncio.to_thread(site.command, *shlex.split(line)[1:])
        assert done.exit_code == 0, done.output
    assert (await client.get_job(job)).state is JobState.OPEN
    assert (await client.get_dataset("sensor_readings")).version == 1
    for arguments in repeated:
        done = await asyncio.to_thread(site.command, *arguments, "--tenant", site.tenant)
        assert done.exit_code == 0, done.output
    assert (await client.get_job(job)).state is JobState.CANCELLED
    assert (await client.get_dataset("sensor_readings")).version == 2
    assert (await client.get_dataset_status("sensor_readings")).state is DatasetState.PAUSED
