"""`jobs revert`: what a job wrote is removed, exactly, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.client import AsyncBulkClient, JobState, Reason, Refused
from bulkgrpc.ingest.reverts import JobNotEnded
from bulkgrpc.model import JobKey
from bulkgrpc.postgres import reverts
from tests.integration.service_values import Command, Parts
from tests.integration.test_provenance import PROVENANCE, batches, execute, job_id, loaded, record_type

pytest_plugins = ["tests.integration.service_parts"]

KEY = 'key: ["id"]'
APPEND = "conflict_policy: CONFLICT_POLICY_APPEND"


def ids(parts: Parts, table: str) -> list[int]:
    return [n for (n,) in parts.rows(f"SELECT id FROM {table} ORDER BY id")]


async def registered(client: AsyncBulkClient, folder: Path, table: str, option: str) -> Any:
    _, descriptors, record = record_type(folder, table, option)
    await client.register_dataset(descriptors, "M")
    return record


async def refusal(client: AsyncBulkClient, name: str) -> Refused:
    for validate_only in (True, False):
        with pytest.raises(Refused) as refused:
            await client.job(name).revert(validate_only=validate_only)
    return refused.value


@pytest.mark.parametrize(
    ("table", "option"),
    [
        ("revert_ignore", KEY),
        ("revert_reject", f"{KEY} conflict_policy: CONFLICT_POLICY_REJECT"),
        ("revert_append", APPEND),
        ("revert_hashed", f"{KEY} hash_partitions: 3"),
    ],
)
async def test_exactly_what_a_job_wrote_is_removed(
    client: AsyncBulkClient, command: Command, parts: Parts, tmp_path: Path, table: str, option: str
) -> None:
    record = await registered(client, tmp_path, table, f"{option} {PROVENANCE}")
    execute(parts, f"INSERT INTO {table} (tenant, id, v) VALUES ('{command.tenant}', 100, '')")
    first = await loaded(client, table, batches(record, [1, 2]))
    second = await loaded(client, table, batches(record, [2, 3], [4]), idempotency_key="second")
    before = ids(parts, table)
    keyless = "APPEND" in option
    wrong = 3 if keyless else 2
    assert command.json("jobs", "revert", second.name, "--plan") == {
        "job": second.name, "table": table, "written": wrong, "found": wrong, "removed": 0, "left": 0
    }  # fmt: skip
    unasked = command("jobs", "revert", second.name)
    assert (unasked.exit_code, "pass --yes, or --plan" in unasked.stderr) == (1, True)
    assert ids(parts, table) == before
    result = command("jobs", "revert", second.name, "--yes")
    assert (result.exit_code, f"Removed {wrong} rows from {table}." in result.stdout) == (0, True), result.output
    assert ids(parts, table) == [1, 2, 100], "the row that another job wrote, and those of no job, stay"
    again = command("jobs", "revert", second.name)
    assert (again.exit_code, "Nothing to do" in again.stdout) == (0, True), again.output
    # The same key is the same job, which has ended: nothing is written.
    repeated = await client.submit(table, batches(record, [2, 3], [4]), idempotency_key="second")
    assert (repeated.name, repeated.replayed, ids(parts, table)) == (second.name, True, [1, 2, 100])
    third = await loaded(client, table, batches(record, [3]), idempotency_key="third")
    assert third.counts.written == 1
    await client.job(first.name).revert()
    assert ids(parts, table) == [3, 100]


async def test_a_large_table_is_reverted_part_by_part(
    client: AsyncBulkClient, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = await registered(client, tmp_path, "revert_parts", f"{APPEND} {PROVENANCE}")
    job = await loaded(client, "revert_parts", batches(record, *[list(range(100)) for _ in range(100)]))
    other = await loaded(client, "revert_parts", batches(record, list(range(100))))
    # The session's server runs in another process: the adapter itself is called here, a page at a time.
    monkeypatch.setattr(reverts, "PAGES_MIN", 1)
    monkeypatch.setattr(reverts, "PAGES", 1)
    monkeypatch.setattr(reverts, "PART_S", 0.0)
    dataset = await client.get_dataset("revert_parts")
    key = JobKey.parse(job.name)
    assert key is not None
    async with AsyncConnectionPool(parts.postgres, open=False, kwargs={"autocommit": True}) as pool:
        rows, page, calls = 0, 0, 0
        while calls == 0 or page:
            part = await reverts.RowsOfJobs(pool).part(key, dataset, page, removes=True)
            rows, page, calls = rows + part.rows, part.next_page, calls + 1
    assert (rows, job.counts.written) == (10_000, 10_000)
    assert calls > 20
    assert parts.rows("SELECT DISTINCT job FROM revert_parts") == [(job_id(other),)]


async def test_what_cannot_be_reverted_is_refused_with_the_reason(
    client: AsyncBulkClient, parts: Parts, tmp_path: Path
) -> None:
    record = await registered(client, tmp_path, "revert_plain", KEY)
    plain = await loaded(client, "revert_plain", batches(record, [1]))
    assert "has no option `provenance`" in (await refusal(client, plain.name)).message
    record = await registered(
        client, tmp_path, "revert_update", f"{KEY} conflict_policy: CONFLICT_POLICY_UPDATE {PROVENANCE}"
    )
    updated = await loaded(client, "revert_update", batches(record, [1]))
    refused = await refusal(client, updated.name)
    assert (refused.reason, "values that the job replaced are not kept" in refused.message) == (
        Reason.JOB_NOT_REVERTIBLE, True
    )  # fmt: skip
    record = await registered(client, tmp_path, "revert_open", f"{KEY} {PROVENANCE}")

    class Broken(Exception):
        pass

    def half() -> Any:
        yield batches(record, [1])[0]
        raise Broken

    with pytest.raises(Broken):
        await client.submit("revert_open", half(), idempotency_key="half")
    job = next(iter([job async for job in client.list_jobs() if job.dataset == "revert_open"]))
    assert (job.state, (await refusal(client, job.name)).reason) == (JobState.OPEN, Reason.JOB_NOT_ENDED)
    cancelled = await client.job(job.name).cancel()
    done = await client.job(job.name).revert()
    assert (cancelled.state, done.rows, ids(parts, "revert_open")) == (
        JobState.CANCELLED, cancelled.counts.written, []
    )  # fmt: skip
    await client.delete_dataset("revert_open")
    assert "was deleted since" in (await refusal(client, job.name)).message
    assert (await refusal(client, job.name.replace(job.name[-4:], "0000"))).reason == Reason.JOB_NOT_FOUND


async def test_a_job_that_lost_batches_is_not_continued_once_it_is_reverted(
    client: AsyncBulkClient, parts: Parts, tmp_path: Path
) -> None:
    record = await registered(client, tmp_path, "revert_lost", f"{KEY} {PROVENANCE}")
    job = await loaded(client, "revert_lost", batches(record, [1], [2]), idempotency_key="lost")
    # As a worker leaves a job that lost its second batch.
    execute(parts, f"UPDATE bulk.jobs SET state = 5, lost = true WHERE job_id = '{job_id(job)}'")
    assert (await client.job(job.name).revert()).rows == 2
    repeated = await client.submit("revert_lost", batches(record, [1], [2]), idempotency_key="lost")
    assert (repeated.replayed, (await repeated.get()).state) == (True, JobState.FAILED)
    assert ids(parts, "revert_lost") == []


async def test_a_job_that_is_opened_again_meanwhile_keeps_its_rows(
    client: AsyncBulkClient, parts: Parts, tmp_path: Path
) -> None:
    record = await registered(client, tmp_path, "revert_again", f"{KEY} {PROVENANCE}")
    job = await loaded(client, "revert_again", batches(record, [1]))
    execute(parts, f"UPDATE bulk.jobs SET state = 1, seal_time = NULL, end_time = NULL WHERE job_id = '{job_id(job)}'")
    key, dataset = JobKey.parse(job.name), await client.get_dataset("revert_again")
    assert key is not None
    async with AsyncConnectionPool(parts.postgres, open=False, kwargs={"autocommit": True}) as pool:
        with pytest.raises(JobNotEnded):
            await reverts.RowsOfJobs(pool).part(key, dataset, 0, removes=True)
    assert ids(parts, "revert_again") == [1]
    assert (await refusal(client, job.name)).reason == Reason.JOB_NOT_ENDED
    execute(
        parts, f"UPDATE bulk.jobs SET state = 3, seal_time = now(), end_time = now() WHERE job_id = '{job_id(job)}'"
    )


async def test_a_refused_revert_leaves_a_job_that_lost_batches_to_be_continued(
    client: AsyncBulkClient, parts: Parts, tmp_path: Path
) -> None:
    record = await registered(client, tmp_path, "revert_held", f"{KEY} {PROVENANCE}")
    job = await loaded(client, "revert_held", batches(record, [1]), idempotency_key="held")
    execute(parts, f"UPDATE bulk.jobs SET state = 5, lost = true WHERE job_id = '{job_id(job)}'")
    execute(
        parts,
        "CREATE FUNCTION refuses() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not these'; END $$; "
        "CREATE TRIGGER refuses BEFORE DELETE ON revert_held FOR EACH ROW EXECUTE FUNCTION refuses()",
    )
    with pytest.raises(Refused, match="not these"):
        await client.job(job.name).revert()
    assert parts.rows(f"SELECT lost FROM bulk.jobs WHERE job_id = '{job_id(job)}'") == [(True,)]


@pytest.mark.parametrize("action", ["CASCADE", "SET NULL"])
async def test_rows_of_others_that_would_go_with_them_refuse_a_revert(
    client: AsyncBulkClient, parts: Parts, tmp_path: Path, action: str
) -> None:
    table = f"revert_{action.partition(' ')[0].lower()}"
    record = await registered(client, tmp_path, table, f"{KEY} {PROVENANCE}")
    job = await loaded(client, table, batches(record, [1]))
    execute(
        parts,
        f"CREATE TABLE {table}_lines (tenant text, id bigint, "
        f"FOREIGN KEY (tenant, id) REFERENCES {table} ON DELETE {action})",
    )
    assert f"of table {table}_lines would delete or change other rows" in (await refusal(client, job.name)).message
    assert ids(parts, table) == [1]


async def test_what_a_trigger_sets_does_not_stay_in_the_session(
    client: AsyncBulkClient, parts: Parts, tmp_path: Path
) -> None:
    record = await registered(client, tmp_path, "revert_sets", f"{KEY} {PROVENANCE}")
    job = await loaded(client, "revert_sets", batches(record, [1]))
    execute(
        parts,
        "CREATE FUNCTION sets() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN SET statement_timeout = 7; RETURN old; "
        "END $$; "
        "CREATE TRIGGER sets BEFORE DELETE ON revert_sets FOR EACH ROW EXECUTE FUNCTION sets()",
    )
    key, dataset = JobKey.parse(job.name), await client.get_dataset("revert_sets")
    assert key is not None
    async with AsyncConnectionPool(
        parts.postgres, open=False, min_size=1, max_size=1, kwargs={"autocommit": True}
    ) as pool:
        assert (await reverts.RowsOfJobs(pool).part(key, dataset, 0, removes=True)).rows == 1
        async with pool.connection() as connection:
            row = await (await connection.execute("SHOW statement_timeout")).fetchone()
    assert row == ("0",)


async def test_rows_that_the_table_keeps_are_named(
    client: AsyncBulkClient, command: Command, parts: Parts, tmp_path: Path
) -> None:
    execute(parts, "CREATE TABLE revert_kept (id bigint PRIMARY KEY, v text, job uuid)")
    bound = f'{KEY} existing_table: {{only_tenant: "{command.tenant}"}} provenance: {{job: "job"}}'
    record = await registered(client, tmp_path, "revert_kept", bound)
    job = await loaded(client, "revert_kept", batches(record, [1, 2, 3]))
    execute(parts, "CREATE TABLE revert_child (id bigint REFERENCES revert_kept); INSERT INTO revert_child VALUES (2)")
    assert (await client.job(job.name).revert(validate_only=True)).rows == 3
    with pytest.raises(Refused, match=r"violates foreign key constraint .*revert_child") as refused:
        await client.job(job.name).revert()
    assert refused.value.reason == Reason.JOB_NOT_REVERTIBLE
    execute(
        parts,
        "DROP TABLE revert_child; CREATE FUNCTION keeps() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF old.id = 2 THEN RETURN NULL; END IF; RETURN old; END $$; "
        "CREATE TRIGGER keeps BEFORE DELETE ON revert_kept FOR EACH ROW EXECUTE FUNCTION keeps()",
    )
    result = command("jobs", "revert", job.name, "--yes", "--json")
    assert (result.exit_code, json.loads(result.stdout)["removed"], json.loads(result.stdout)["left"]) == (1, 2, 1)
    assert "a trigger of the table keeps them" in result.stderr
    assert ids(parts, "revert_kept") == [2]
