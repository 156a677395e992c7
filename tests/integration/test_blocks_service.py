"""Blocked datasets through the command line, with a real server, Kafka and worker."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator

import pytest

from bulkgrpc.client import AsyncBulkClient, BlockedBy, JobState, NotEnded
from tests.integration.service_values import Command, Parts
from tests.support import examples
from tests.support.waiting import eventually

pytest_plugins = ["tests.integration.service_parts"]

NAME = "sensor_readings"
WRITABLE = {"state": "writable", "reason": "", "sqlstate": ""}


@pytest.fixture
def paused(command: Command) -> Iterator[Command]:
    """The command line, with the dataset paused while the test runs."""
    assert command.json("datasets", "pause", NAME, "--reason", "rebuild the table")["state"] == "paused"
    yield command
    command("datasets", "discard", NAME, "--yes")
    command("datasets", "resume", NAME)


async def submit(client: AsyncBulkClient, records: int = 10) -> str:
    batches = [examples.reading_batch(0, records)]
    return (await client.submit(NAME, batches, idempotency_key=uuid.uuid4().hex)).name


async def until_parked(command: Command, messages: int) -> None:
    await eventually(lambda: bool(command.json("datasets", "show", NAME)["parked"]["messages"] == messages))


async def test_what_is_submitted_while_a_dataset_is_paused_is_written_once_it_is_resumed(
    paused: Command, client: AsyncBulkClient, parts: Parts, tenant: str
) -> None:
    job = await submit(client)
    await until_parked(paused, 2)
    shown = paused.json("datasets", "show", NAME)
    assert (shown["state"], shown["reason"], shown["parked"]["records"]) == ("paused", "rebuild the table", 10)
    assert shown["lanes"] == 1
    found = (await client.get_job(job)).block
    assert found is not None
    assert (found.cause, found.reason) == (BlockedBy.PAUSED, "rebuild the table")
    for arguments in (("jobs", "get", job), ("jobs", "list")):
        assert "paused since" in paused(*arguments).stdout
        assert "rebuild the table" in paused(*arguments).stdout
    (listed,) = paused.json_lines("jobs", "list")
    assert listed["block"]["reason"] == "rebuild the table"
    with pytest.raises(NotEnded, match=r"paused since .*: rebuild the table"):
        await client.job(job).wait(deadline_s=0.5)
    watched = await asyncio.to_thread(paused, "jobs", "watch", job, "--deadline", "1")
    assert watched.exit_code == 1
    assert "rebuild the table" in watched.stderr

    ledger = paused.json("ledger", "show")
    (queue,) = ledger["queues"]
    assert (queue["tenant"], queue["dataset"], queue["reason"]) == (tenant, NAME, "rebuild the table")
    assert queue["parked"]["messages"] == 2
    text = paused("ledger", "show").stdout
    assert {"owner", "epoch", tenant, "2", "messages"} <= set(text.split())

    assert paused.json("datasets", "resume", NAME)["state"] == "writable"
    ended = await client.job(job).wait()
    assert (ended.state, ended.counts.written, ended.block) == (JobState.SUCCEEDED, 10, None)
    assert parts.rows("SELECT count(*) FROM sensor_readings WHERE tenant = %s", tenant) == [(10,)]
    shown = paused.json("datasets", "show", NAME)
    assert {name: shown[name] for name in WRITABLE} == WRITABLE


async def test_a_discard_asks_first_and_then_the_job_ends_with_the_reason(
    paused: Command, client: AsyncBulkClient, parts: Parts, tenant: str
) -> None:
    job = await submit(client)
    await until_parked(paused, 2)
    asked = paused("datasets", "discard", NAME)
    assert asked.exit_code == 1
    assert tenant in asked.stderr
    assert "2 messages with 10 records" in asked.stderr
    assert paused.json("datasets", "show", NAME)["state"] == "paused"

    result = paused("datasets", "discard", NAME, "--yes", "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert (document["state"], document["discarded"]["records"]) == ("discarding", 10)
    assert [one["tenant"] for one in document["discarded"]["tenants"]] == [tenant]
    ended = await client.job(job).wait()
    assert (ended.state, ended.counts.expired) == (JobState.FAILED, 10)
    assert "rebuild the table" in ended.discard_reason
    assert "rebuild the table" in paused("jobs", "get", job).stdout
    assert parts.rows("SELECT count(*) FROM sensor_readings WHERE tenant = %s", tenant) == [(0,)]
    await until_parked(paused, 0)
    assert paused.json("datasets", "show", NAME)["state"] == "paused"


def test_a_writable_dataset_is_not_discarded_and_an_unknown_one_is_not_found(command: Command) -> None:
    result = command("datasets", "discard", NAME, "--yes")
    assert result.exit_code == 1
    assert "bulkgrpc datasets pause" in result.stderr
    for arguments in (("pause", "nothing"), ("resume", "nothing"), ("discard", "nothing", "--yes")):
        result = command("datasets", *arguments)
        assert result.exit_code == 1
        assert "dataset nothing is not registered" in result.stderr
