"""Datasets that are bound to tables which exist, with a real server and worker: they are written, never changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
from google.protobuf import message_factory

from bulkgrpc.client import AsyncBulkClient, JobOptions, JobState, Reason, Refused
from bulkgrpc.datasets.definition import find_message
from bulkgrpc.datasets.sources import compile_proto
from tests.integration.service_values import Command, Parts

pytest_plugins = ["tests.integration.service_parts"]

_SHAPE = """
    SELECT 'column', attname::text, format_type(atttypid, atttypmod), attnotnull::text,
           pg_get_expr(d.adbin, d.adrelid), attidentity::text || attgenerated::text
    FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE attrelid = %(table)s::regclass AND attnum > 0
    UNION ALL
    SELECT 'constraint', conname::text, pg_get_constraintdef(oid), '', '', '' FROM pg_constraint
    WHERE conrelid = %(table)s::regclass
    UNION ALL
    SELECT 'index', indexrelid::regclass::text, pg_get_indexdef(indexrelid), '', '', '' FROM pg_index
    WHERE indrelid = %(table)s::regclass
    UNION ALL SELECT 'oid', %(table)s::regclass::oid::text, relowner::text, relacl::text, '', ''
    FROM pg_class WHERE oid = %(table)s::regclass
    ORDER BY 1, 2, 3
"""


def execute(parts: Parts, statements: str) -> None:
    with psycopg.connect(parts.postgres, autocommit=True) as connection:
        connection.execute(statements.encode())


def shape(parts: Parts, table: str) -> list[tuple[Any, ...]]:
    """Everything that a change of the table's definition would change."""
    with psycopg.connect(parts.postgres) as connection:
        return connection.execute(_SHAPE.encode(), {"table": table}).fetchall()


def message(folder: Path, name: str, option: str, fields: str) -> tuple[Path, bytes, Any]:
    """A proto with one message: its file, its descriptors, its class."""
    file = folder / f"{name.lower()}.proto"
    file.write_text(
        'syntax = "proto3"; package team.v1; import "bulkgrpc/v1/options.proto"; '
        'import "google/protobuf/timestamp.proto"; import "google/protobuf/duration.proto"; '
        f"message {name} {{ option (bulkgrpc.v1.dataset) = {{{option}}}; {fields} }}"
    )
    descriptors = compile_proto(file)
    return file, descriptors, message_factory.GetMessageClass(find_message(descriptors, f"team.v1.{name}"))


READINGS = """
    CREATE TABLE team_readings (
      sensor_id text, value double precision, sampled_at timestamptz, PRIMARY KEY (sensor_id, sampled_at)
    )
"""


@pytest.fixture
def readings(parts: Parts) -> Any:
    execute(parts, READINGS)
    yield
    execute(parts, "DROP TABLE IF EXISTS team_readings; DROP SCHEMA IF EXISTS app CASCADE")


@pytest.mark.usefixtures("readings")
def test_a_teams_table_is_filled_skips_what_it_has_and_stays_as_it_is(
    command: Command, parts: Parts, tenant: str, tmp_path: Path
) -> None:
    before = shape(parts, "team_readings")
    file, _, _ = message(
        tmp_path,
        "TeamReading",
        'table: "team_readings" key: ["sensor_id", "sampled_at"] '
        f'conflict_policy: CONFLICT_POLICY_IGNORE existing_table: {{only_tenant: "{tenant}"}}',
        "string sensor_id = 1; double value = 2; google.protobuf.Timestamp sampled_at = 3;",
    )
    execute(parts, "INSERT INTO team_readings VALUES ('s1', 7, '2026-01-01 00:00Z')")
    plan = command("datasets", "plan", file)
    assert plan.exit_code == 0, plan.output
    assert "bound to public.team_readings, which is not changed" in plan.output
    assert "CREATE" not in plan.output
    command.json("datasets", "register", file)
    rows = tmp_path / "readings.csv"
    rows.write_text(
        "sensor_id,value,sampled_at\ns1,1,2026-01-01T00:00:00Z\ns2,2,2026-01-01T00:00:00Z\ns2,3,2026-01-01T00:00:00Z\n"
    )
    counts = command.json("load", rows, "--dataset", "team_readings")["job"]["counts"]
    assert (counts["accepted"], counts["written"], counts["duplicate"], counts["rejected"]) == (3, 1, 2, 0)
    found = parts.rows("SELECT sensor_id, value FROM team_readings ORDER BY 1")
    assert found == [("s1", 7), ("s2", 2)], "an existing row is kept, of equal records the first is written"
    assert shape(parts, "team_readings") == before
    refused = command("datasets", "delete", "team_readings", "--drop-table", "--yes")
    assert refused.exit_code == 1
    assert "is not the service's" in refused.output
    assert command("datasets", "delete", "team_readings", "--yes").exit_code == 0
    assert shape(parts, "team_readings") == before
    assert parts.rows("SELECT count(*) FROM team_readings") == [(2,)]


async def test_a_table_that_is_there_is_refused_by_plan_as_by_register(
    client: AsyncBulkClient, command: Command, parts: Parts, tmp_path: Path
) -> None:
    execute(parts, "CREATE TABLE IF NOT EXISTS of_others (id bigint PRIMARY KEY)")
    file, descriptors, _ = message(tmp_path, "OfOthers", 'table: "of_others" key: ["id"]', "int64 id = 1;")
    for call in (client.plan_dataset, client.register_dataset):
        with pytest.raises(Refused, match="bind the dataset to it with `existing_table`") as refused:
            await call(descriptors, "team.v1.OfOthers")
        assert refused.value.reason == Reason.DATASET_EXISTS
    assert command("datasets", "plan", file).exit_code == 1


async def test_records_of_another_tenant_are_refused_before_a_job_exists(
    client: AsyncBulkClient, parts: Parts, tmp_path: Path
) -> None:
    execute(parts, "CREATE TABLE IF NOT EXISTS of_one (id bigint PRIMARY KEY)")
    option = 'table: "of_one" key: ["id"] existing_table: {only_tenant: "somebody-else"}'
    _, descriptors, one = message(tmp_path, "OfOne", option, "int64 id = 1;")
    await client.register_dataset(descriptors, "team.v1.OfOne")
    with pytest.raises(Refused, match="bound to a table of tenant somebody-else") as refused:
        await client.submit("of_one", [one(id=1)], idempotency_key="of-one")
    assert refused.value.reason == Reason.WRONG_TENANT
    assert parts.rows("SELECT count(*) FROM bulk.jobs WHERE idempotency_key = 'of-one'") == [(0,)]


DEVICES = """
    CREATE SCHEMA "App"; CREATE TYPE "App".mood AS ENUM ('sad', 'ok');
    CREATE DOMAIN "App".positive AS integer CHECK (VALUE > 0);
    CREATE TABLE "App"."Devices" (
      "Number" bigint GENERATED ALWAYS AS IDENTITY, "Owner" varchar(40) NOT NULL, "Id" smallint NOT NULL,
      "Label" varchar(5), code char(3), address inet, "Mood" "App".mood, size "App".positive, took interval,
      at timestamp, addresses cidr[], "Limits" smallint[], doc jsonb, "Created" timestamptz NOT NULL DEFAULT now(),
      double integer GENERATED ALWAYS AS (size * 2) STORED, UNIQUE ("Owner", "Id")
    )
"""
DEVICE_FIELDS = """
    int32 id = 1 [(bulkgrpc.v1.column).name = "Id"]; optional string label = 2 [(bulkgrpc.v1.column).name = "Label"];
    optional string code = 3; optional string address = 4;
    optional string mood = 5 [(bulkgrpc.v1.column).name = "Mood"];
    optional int32 size = 6; google.protobuf.Duration took = 7; google.protobuf.Timestamp at = 8;
    repeated string addresses = 9; repeated int32 limits = 10 [(bulkgrpc.v1.column).name = "Limits"];
    string doc = 11 [(bulkgrpc.v1.column).type = COLUMN_TYPE_JSONB];
"""
UNFIT: list[tuple[dict[str, Any], str, str]] = [
    ({"id": 40_000}, "id", "outside -32768 to 32767"),
    ({"id": 12, "label": "too long"}, "label", "longer than the 5 characters"),
    ({"id": 13, "code": "abcd"}, "code", "longer than the 3 characters"),
    ({"id": 14, "address": "300.1.1.1"}, "address", 'invalid input syntax for type inet: "300.1.1.1"'),
    ({"id": 15, "mood": "glad"}, "mood", 'invalid input value for enum "App".mood: "glad"'),
    ({"id": 16, "size": 0}, "", "positive_check"),
    ({"id": 17, "addresses": ["10.0.0.0/8", "10.0.0.1/8"]}, "addresses", "invalid cidr value"),
    ({"id": 18, "limits": [1, 2**15]}, "limits", "outside -32768 to 32767"),
]


@pytest.mark.parametrize("policy", ["IGNORE", "UPDATE", "REJECT"])
async def test_values_that_do_not_fit_are_rejected_and_their_neighbours_written(
    client: AsyncBulkClient, command: Command, parts: Parts, tenant: str, tmp_path: Path, policy: str
) -> None:
    execute(parts, 'DROP SCHEMA IF EXISTS "App" CASCADE; ' + DEVICES)
    before = shape(parts, '"App"."Devices"')
    name = f"devices_{policy.lower()}"
    option = (
        f'table: "{name}" key: ["id"] conflict_policy: CONFLICT_POLICY_{policy} '
        'existing_table: {schema: "App" table: "Devices" tenant_column: "Owner"}'
    )
    file, descriptors, device = message(tmp_path, "Device", option, DEVICE_FIELDS)
    plan = command.json("datasets", "plan", file)
    verdicts = {fit["column"]: fit["verdict"] for fit in plan["column_fits"]}
    assert plan["refusals"] == []
    assert {name for name, verdict in verdicts.items() if verdict == "converted"} == {
        "Owner", "Id", "Label", "code", "address", "Mood", "at", "addresses", "Limits"
    }  # fmt: skip
    assert {name for name, verdict in verdicts.items() if verdict == "left to PostgreSQL"} == {
        "Number", "Created", "double"
    }  # fmt: skip
    await client.register_dataset(descriptors, "team.v1.Device")

    full = device(
        id=1, label="äbcde", code="ab", address="10.1.2.3/8", mood="ok", size=4, addresses=["10.0.0.0/8", "::1/128"],
        limits=[1, -(2**15)], doc='{"a": [1]}',
    )  # fmt: skip
    full.took.FromMilliseconds(90_500)
    full.at.FromJsonString("2026-03-01T10:00:00.000001Z")
    records = [full, *(device(**values) for values, _, _ in UNFIT), device(id=2)]
    handle = await client.submit(name, records)
    job = await handle.wait()
    assert job.state is JobState.PARTIALLY_SUCCEEDED
    assert (job.counts.written, job.counts.rejected) == (2, len(UNFIT))
    rejected = [one async for one in handle.rejections()]
    assert [one.record_index for one in rejected] == list(range(1, len(UNFIT) + 1))
    for one, (_, field, says) in zip(rejected, UNFIT, strict=True):
        assert says in one.reason
        assert one.field == field
    found = parts.rows(
        'SELECT "Number" > 0, "Owner", "Id", "Label", code::text, address::text, "Mood"::text, size, took::text, '
        'at::text, addresses::text, "Limits", doc::text, "Created" IS NOT NULL, double '
        'FROM "App"."Devices" ORDER BY "Id"'
    )
    assert found == [
        (True, tenant, 1, "äbcde", "ab", "10.1.2.3/8", "ok", 4, "00:01:30.5", "2026-03-01 10:00:00.000001",
         "{10.0.0.0/8,::1/128}", [1, -(2**15)], '{"a": [1]}', True, 8),
        (True, tenant, 2, None, None, None, None, None, None, None, "{}", [], None, True, None),
    ]  # fmt: skip
    again = (await (await client.submit(name, [full])).wait()).counts
    by_policy = {"IGNORE": (0, 1, 0), "UPDATE": (1, 0, 0), "REJECT": (0, 0, 1)}
    assert (again.written, again.duplicate, again.rejected) == by_policy[policy]

    atomic = JobOptions(atomic=True)
    full.id = 3
    job = await (await client.submit(name, [full, device(id=4, address="::1")], options=atomic)).wait()
    assert (job.state, job.counts.written) == (JobState.SUCCEEDED, 2)
    assert parts.rows('SELECT address::text, at::text FROM "App"."Devices" WHERE "Id" > 2 ORDER BY "Id"') == [
        ("10.1.2.3/8", "2026-03-01 10:00:00.000001"),
        ("::1/128", None),
    ]
    for values, _, _ in UNFIT:
        job = await (await client.submit(name, [device(id=5), device(**values)], options=atomic)).wait()
        assert job.state is JobState.FAILED
        assert "the table" in job.failure_reason
    assert parts.rows('SELECT count(*) FROM "App"."Devices"') == [(4,)]
    assert shape(parts, '"App"."Devices"') == before


REFUSED = [
    ("id bigint PRIMARY KEY, value money", "string value = 2;", "column value is money in the table"),
    ("id bigint PRIMARY KEY, value numeric(4,1)", "double value = 2;", "with type: COLUMN_TYPE_NUMERIC precision: 4"),
    ("id bigint PRIMARY KEY, value integer NOT NULL", "", "column value of the table takes no null"),
    ("id bigint PRIMARY KEY", "string value = 2;", "column value is missing"),
    ("id bigint PRIMARY KEY, value date", "string value = 2;", "COLUMN_TYPE_DATE"),
    (
        "id bigint, value text UNIQUE",
        "string value = 2;",
        "name the fields of one of its unique keys in `key`: (value)",
    ),
    ("id bigint, value text", "string value = 2;", "has no valid unique index on (id)"),
    ("id bigint PRIMARY KEY, value integer GENERATED ALWAYS AS (1) STORED", "int32 value = 2;", "generated column"),
]


@pytest.mark.parametrize("case", REFUSED)
async def test_a_table_that_does_not_fit_is_refused_by_name_and_plan_says_so_first(
    client: AsyncBulkClient, command: Command, parts: Parts, tmp_path: Path, case: tuple[str, str, str]
) -> None:
    columns, field, says = case
    execute(parts, f"DROP TABLE IF EXISTS unfit; CREATE TABLE unfit ({columns})")
    option = 'table: "unfit" key: ["id"] existing_table: {tenant_not_stored: true}'
    file, descriptors, _ = message(tmp_path, "Unfit", option, f"int64 id = 1; {field}")
    plan = command("datasets", "plan", file)
    assert plan.exit_code == 1
    assert says in " ".join(plan.stdout.split())
    assert any(
        says in refusal for refusal in json.loads(command("datasets", "plan", file, "--json").stdout)["refusals"]
    )
    with pytest.raises(Refused) as refused:
        await client.register_dataset(descriptors, "team.v1.Unfit")
    assert says in str(refused.value)
    assert refused.value.reason == Reason.DATASET_INCOMPATIBLE


async def test_the_reason_of_a_repeated_key_shows_it_as_it_was_sent(
    client: AsyncBulkClient, parts: Parts, tmp_path: Path
) -> None:
    execute(parts, "CREATE TABLE hosts (address inet, ref uuid, PRIMARY KEY (address, ref))")
    option = (
        'table: "hosts" key: ["address", "ref"] conflict_policy: CONFLICT_POLICY_REJECT '
        "existing_table: {tenant_not_stored: true}"
    )
    uuid = "(bulkgrpc.v1.column).type = COLUMN_TYPE_UUID"
    _, descriptors, host = message(tmp_path, "Hosts", option, f"string address = 1; bytes ref = 2 [{uuid}];")
    await client.register_dataset(descriptors, "team.v1.Hosts")
    one = host(address="10.0.0.1/8", ref=bytes(range(16)))
    handle = await client.submit("hosts", [host(address="::1", ref=bytes(16)), one, one])
    assert (await handle.wait()).counts.written == 2
    key = "address=10.0.0.1/8, ref=00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert [f"the key ({key}) is already" in one.reason async for one in handle.rejections()] == [True]


async def test_a_record_that_breaks_another_unique_index_is_rejected_not_taken_for_known(
    client: AsyncBulkClient, parts: Parts, tmp_path: Path
) -> None:
    execute(parts, "CREATE TABLE two_keys (id bigint PRIMARY KEY, name text UNIQUE)")
    option = 'table: "two_keys" key: ["id"] existing_table: {tenant_not_stored: true}'
    _, descriptors, two = message(tmp_path, "TwoKeys", option, "int64 id = 1; string name = 2;")
    await client.register_dataset(descriptors, "team.v1.TwoKeys")
    records = [two(id=1, name="a"), two(id=2, name="a"), two(id=3, name="b"), two(id=1, name="c")]
    handle = await client.submit("two_keys", records)
    job = await handle.wait()
    assert (job.counts.written, job.counts.duplicate, job.counts.rejected) == (2, 1, 1)
    assert [one.reason async for one in handle.rejections()] == [
        'duplicate key value violates unique constraint "two_keys_name_key"'
    ]


async def test_a_table_without_a_key_takes_every_record(client: AsyncBulkClient, parts: Parts, tmp_path: Path) -> None:
    execute(parts, "CREATE TABLE log_lines (host text, line varchar(5), at timestamptz NOT NULL DEFAULT now())")
    before = shape(parts, "log_lines")
    option = 'table: "log_lines" conflict_policy: CONFLICT_POLICY_APPEND existing_table: {tenant_not_stored: true}'
    _, descriptors, line = message(tmp_path, "Line", option, "string host = 1; string line = 2;")
    await client.register_dataset(descriptors, "team.v1.Line")
    records = [line(host="a", line="one"), line(host="a", line="one"), line(host="b", line="too long")]
    for options in (JobOptions(), JobOptions(atomic=True)):
        chosen = records[:2] if options.atomic else records
        job = await (await client.submit("log_lines", chosen, options=options)).wait()
        assert (job.counts.written, job.counts.rejected) == (2, len(chosen) - 2)
    found = parts.rows("SELECT host, line, at IS NOT NULL FROM log_lines")
    assert found == [("a", "one", True)] * 4
    assert shape(parts, "log_lines") == before


async def test_a_check_that_a_row_breaks_is_named_with_the_table_that_has_it(
    client: AsyncBulkClient, parts: Parts, tmp_path: Path
) -> None:
    execute(parts, "CREATE TABLE theirs (id bigint PRIMARY KEY CHECK (id > 0))")
    option = 'table: "checked" key: ["id"] existing_table: {table: "theirs" tenant_not_stored: true}'
    _, descriptors, checked = message(tmp_path, "Checked", option, "int64 id = 1;")
    await client.register_dataset(descriptors, "team.v1.Checked")
    handle = await client.submit("checked", [checked(id=1), checked(id=-1)])
    assert (await handle.wait()).counts.rejected == 1
    says = 'new row for relation "theirs" violates check constraint "theirs_id_check"'
    assert [one.reason async for one in handle.rejections()] == [says]


async def test_evolution_never_changes_the_table_and_needs_the_column_to_be_there(
    client: AsyncBulkClient, parts: Parts, tmp_path: Path
) -> None:
    execute(parts, "CREATE TABLE growing (id bigint PRIMARY KEY)")
    option = 'table: "growing" key: ["id"] existing_table: {tenant_not_stored: true}'
    _, first, _ = message(tmp_path, "Growing", option, "int64 id = 1;")
    _, second, two = message(tmp_path, "Growing", option, "int64 id = 1; optional string name = 2;")
    assert (await client.register_dataset(first, "team.v1.Growing")).version == 1
    with pytest.raises(Refused, match="column name is missing in the table"):
        await client.register_dataset(second, "team.v1.Growing")
    execute(parts, "ALTER TABLE growing ADD COLUMN name text")
    before = shape(parts, "growing")
    assert (await client.register_dataset(second, "team.v1.Growing")).version == 2
    job = await (await client.submit("growing", [two(id=1, name="a")])).wait()
    assert job.state is JobState.SUCCEEDED
    assert shape(parts, "growing") == before
    _, owned, _ = message(
        tmp_path, "Growing", 'table: "growing" key: ["id"]', "int64 id = 1; optional string name = 2;"
    )
    with pytest.raises(Refused, match=r"existing_table of dataset growing is public\.growing without the tenant"):
        await client.register_dataset(owned, "team.v1.Growing")
    await client.delete_dataset("growing")
    with pytest.raises(Refused) as exists:
        await client.register_dataset(owned, "team.v1.Growing")
    assert exists.value.reason == Reason.DATASET_EXISTS, "a table of others is never taken over"
    assert shape(parts, "growing") == before


@pytest.mark.usefixtures("readings")
def test_a_proto_that_is_inferred_from_a_table_registers_against_it_and_loads(
    command: Command, parts: Parts, tenant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BULKGRPC_POSTGRES", parts.postgres)
    execute(parts, "CREATE SCHEMA app; ALTER TABLE team_readings SET SCHEMA app")
    before = shape(parts, "app.team_readings")
    proto = tmp_path / "inferred.proto"
    proto.write_text(command.json("datasets", "infer", "--table", "app.team_readings")["proto"])
    command.json("datasets", "register", proto)
    rows = tmp_path / "readings.csv"
    rows.write_text("sensor_id,value,sampled_at\ns1,1,2026-01-01T00:00:00Z\ns1,,2026-01-02T00:00:00Z\n")
    counts = command.json("load", rows, "--dataset", "team_readings")["job"]["counts"]
    assert counts["written"] == 2
    assert parts.rows("SELECT sensor_id, value FROM app.team_readings ORDER BY sampled_at") == [("s1", 1), ("s1", None)]
    assert shape(parts, "app.team_readings") == before
    command("datasets", "delete", "team_readings", "--yes")


def test_the_proto_of_a_table_of_all_kinds_of_columns_fits_it(
    command: Command, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BULKGRPC_POSTGRES", parts.postgres)
    execute(parts, 'DROP SCHEMA IF EXISTS "App" CASCADE; ' + DEVICES)
    execute(
        parts,
        'ALTER TABLE "App"."Devices" ADD mac macaddr, ADD span int4range, ADD price numeric(9,2), '
        "ADD any_number numeric, "
        "ADD noon time, ADD nights date[], ADD raw bytea, ADD day date, ADD ref uuid, ADD labels varchar(9)[], "
        'ADD moods "App".mood[], ADD "select" boolean, ADD "1st" real, ADD plain json',
    )
    proto = tmp_path / "devices.proto"
    text = command.json("datasets", "infer", "--table", '"App"."Devices"', "--tenant-column", "Owner")["proto"]
    proto.write_text(text)
    plan = command.json("datasets", "plan", proto)
    assert plan["refusals"] == []
    assert plan["key"] == ["Id"]
    verdicts = {fit["column"]: fit["verdict"] for fit in plan["column_fits"]}
    assert {name for name, verdict in verdicts.items() if verdict == "left to PostgreSQL"} == {
        "Number", "Created", "double", "nights"
    }  # fmt: skip
    assert "// No field for column nights date[]: its type cannot be written." in text
    missing = command("datasets", "infer", "--table", "App.Devices")
    assert missing.exit_code == 1
    assert "there is no table App.Devices" in missing.output


@pytest.mark.parametrize(
    ("columns", "binding"),
    [
        ("tenant text, at timestamptz, value real", 'tenant_column: "tenant"'),
        ("at timestamptz, value real UNIQUE", 'only_tenant: "plant"'),
    ],
    ids=["tenant", "index that takes null"],
)
def test_the_proto_of_a_table_without_a_key_appends(
    command: Command, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: str, binding: str
) -> None:
    monkeypatch.setenv("BULKGRPC_POSTGRES", parts.postgres)
    execute(parts, f"DROP TABLE IF EXISTS keyless; CREATE TABLE keyless ({columns})")
    proto = tmp_path / "keyless.proto"
    arguments = ("datasets", "infer", "--table", "keyless", "--tenant", "plant")
    proto.write_text(command.json(*arguments)["proto"])
    plan = command.json("datasets", "plan", proto)
    assert (plan["refusals"], plan["key"], plan["conflict_policy"]) == ([], [], "append")
    assert f'schema: "public" table: "keyless" {binding}}}' in proto.read_text()


OTHER_TABLES = [
    (
        "CREATE TABLE kinds (id bigint PRIMARY KEY, name text) PARTITION BY HASH (id); "
        "CREATE TABLE kinds_0 PARTITION OF kinds FOR VALUES WITH (MODULUS 2, REMAINDER 0); "
        "CREATE TABLE kinds_1 PARTITION OF kinds FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
        (3, 1, 0, 0),
    ),
    (
        "CREATE TABLE kinds (id bigint PRIMARY KEY, name text REFERENCES names DEFERRABLE INITIALLY DEFERRED)",
        (2, 1, 1, 0),
    ),
    (
        "CREATE TABLE kinds (id bigint PRIMARY KEY, name text); CREATE TRIGGER passes BEFORE INSERT ON kinds "
        "FOR EACH ROW WHEN (NEW.name = 'b') EXECUTE FUNCTION pass_over()",
        (2, 1, 0, 1),
    ),
    ("CREATE TABLE base (id bigint, name text); CREATE TABLE kinds (PRIMARY KEY (id)) INHERITS (base)", (3, 1, 0, 0)),
]
KINDS = """
    DROP TABLE IF EXISTS kinds_part, child, kinds, base, names CASCADE; DROP VIEW IF EXISTS kinds_view;
    CREATE TABLE names (name text PRIMARY KEY); INSERT INTO names VALUES ('a'), ('c');
    CREATE OR REPLACE FUNCTION pass_over() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
"""


@pytest.mark.parametrize(("statements", "counts"), OTHER_TABLES, ids=["partitions", "foreign key", "trigger", "child"])
async def test_partitions_foreign_keys_triggers_and_parents_of_a_table_work(
    client: AsyncBulkClient, parts: Parts, tmp_path: Path, statements: str, counts: tuple[int, int, int, int]
) -> None:
    execute(parts, KINDS + statements)
    option = 'table: "kinds" key: ["id"] existing_table: {tenant_not_stored: true}'
    _, descriptors, kind = message(tmp_path, "Kinds", option, "int64 id = 1; optional string name = 2;")
    await client.register_dataset(descriptors, "team.v1.Kinds")
    execute(parts, "INSERT INTO kinds VALUES (9, 'a')")
    records = [kind(id=1, name="a"), kind(id=2, name="b"), kind(id=3, name="c"), kind(id=9)]
    found = (await (await client.submit("kinds", records)).wait()).counts
    assert (found.written, found.duplicate, found.rejected, found.skipped) == counts


NOT_POSSIBLE = [
    ("CREATE TABLE kinds (id bigint PRIMARY KEY, name text); CREATE TABLE child () INHERITS (kinds)", "inherit from"),
    ("CREATE TABLE base (id bigint PRIMARY KEY, name text); CREATE VIEW kinds AS TABLE base", "is a view"),
    ("CREATE UNLOGGED TABLE kinds (id bigint PRIMARY KEY, name text)", "UNLOGGED"),
    (
        "CREATE TABLE kinds (id bigint PRIMARY KEY, name text); "
        "CREATE RULE passes AS ON INSERT TO kinds DO INSTEAD NOTHING",
        "has the rule passes",
    ),
    ("CREATE TABLE kinds (id bigint PRIMARY KEY DEFERRABLE, name text)", "deferrable"),
    ("CREATE TABLE kinds (id bigint PRIMARY KEY, name text) PARTITION BY HASH (id)", "a partition is missing"),
]


@pytest.mark.parametrize(("statements", "says"), NOT_POSSIBLE, ids=[says for _, says in NOT_POSSIBLE])
async def test_a_table_that_no_rows_can_be_written_to_exactly_once_is_refused_by_name(
    client: AsyncBulkClient, parts: Parts, tmp_path: Path, statements: str, says: str
) -> None:
    execute(parts, KINDS + statements)
    option = 'table: "refused" key: ["id"] existing_table: {table: "kinds" tenant_not_stored: true}'
    _, descriptors, _ = message(tmp_path, "Refused", option, "int64 id = 1; optional string name = 2;")
    plan = await client.plan_dataset(descriptors, "team.v1.Refused")
    assert any(says in refusal for refusal in plan.refusals), plan.refusals
    with pytest.raises(Refused, match=says):
        await client.register_dataset(descriptors, "team.v1.Refused")
    execute(parts, "DROP VIEW IF EXISTS kinds" if "VIEW" in statements else "DROP TABLE kinds CASCADE")


@pytest.mark.parametrize("atomic", [False, True], ids=["usual", "atomic"])
@pytest.mark.parametrize(("policy", "wins"), [("IGNORE", 1), ("UPDATE", 2)])
async def test_texts_that_postgresql_reads_as_one_key_are_one_key(
    client: AsyncBulkClient, parts: Parts, tmp_path: Path, policy: str, wins: int, *, atomic: bool
) -> None:
    execute(parts, "DROP TABLE IF EXISTS hosts; CREATE TABLE hosts (address inet, zone char(4), value integer)")
    execute(parts, "ALTER TABLE hosts ADD PRIMARY KEY (address, zone)")
    name = f"hosts_{policy.lower()}"
    option = (
        f'table: "{name}" key: ["address", "zone"] conflict_policy: CONFLICT_POLICY_{policy} '
        'existing_table: {table: "hosts" tenant_not_stored: true}'
    )
    _, descriptors, host = message(
        tmp_path, "Host", option, "string address = 1; string zone = 2; optional int32 value = 3;"
    )
    await client.register_dataset(descriptors, "team.v1.Host")
    records = [
        host(address="10.0.0.1/32", zone="a", value=1),
        host(address="10.0.0.2", zone="a", value=5),
        host(address="10.0.0.1", zone="a ", value=2),
    ]
    options = JobOptions(atomic=atomic)
    counts = (await (await client.submit(name, records, options=options)).wait()).counts
    assert (counts.written, counts.duplicate) == ((2, 1) if policy == "IGNORE" else (3, 0))
    found = parts.rows("SELECT address::text, zone::text, value FROM hosts ORDER BY 1")
    assert found == [("10.0.0.1/32", "a", wins), ("10.0.0.2/32", "a", 5)]


async def test_tenants_share_the_keys_of_a_table_whose_key_is_without_the_tenant(
    client: AsyncBulkClient, command: Command, parts: Parts, tenant: str, tmp_path: Path
) -> None:
    execute(parts, "CREATE TABLE shared_keys (id bigint PRIMARY KEY, tenant uuid, account text)")
    option = 'table: "shared_keys" key: ["id"] existing_table: {tenant_column: "account" key_without_tenant: true}'
    _, descriptors, one = message(tmp_path, "SharedKeys", option, "int64 id = 1; optional string tenant = 2;")
    await client.register_dataset(descriptors, "team.v1.SharedKeys")
    record = one(id=1, tenant="00000000-0000-0000-0000-0000000000ff")
    async with AsyncBulkClient(command.server, tenant="other") as other:
        counts = [(await (await who.submit("shared_keys", [record])).wait()).counts for who in (client, other)]
    assert [(found.written, found.duplicate) for found in counts] == [(1, 0), (0, 1)]
    assert parts.rows("SELECT id, tenant::text, account FROM shared_keys") == [(1, record.tenant, tenant)]


async def test_unreadable_texts_are_found_in_a_statement_whatever_their_number(
    client: AsyncBulkClient, parts: Parts, tmp_path: Path
) -> None:
    execute(parts, "CREATE TABLE many_hosts (id bigint PRIMARY KEY, address inet, mac macaddr)")
    option = 'table: "many_hosts" key: ["id"] existing_table: {tenant_not_stored: true}'
    _, descriptors, host = message(tmp_path, "ManyHosts", option, "int64 id = 1; string address = 2; string mac = 3;")
    await client.register_dataset(descriptors, "team.v1.ManyHosts")
    rows = 20_000
    records = [
        host(
            id=n,
            address=f"10.0.{n % 256}.{n % 200}" if n % 7 else "nowhere",
            mac="08:00:2b:01:02:03" if n % 11 else "?",
        )
        for n in range(rows)
    ]
    handle = await client.submit("many_hosts", records)
    counts = (await handle.wait()).counts
    unfit = [n for n in range(rows) if not n % 7 or not n % 11]
    assert (counts.written, counts.rejected) == (rows - len(unfit), len(unfit))
    fields = {one.field async for one in handle.rejections()}
    assert fields == {"address", "mac"}
    assert parts.rows("SELECT count(*), count(address), count(mac) FROM many_hosts") == [(rows - len(unfit),) * 3]
