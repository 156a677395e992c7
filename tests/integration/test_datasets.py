"""Datasets from a file to a table and through their versions, with a real server and worker."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet
import pytest
from google.protobuf import message_factory

from bulkgrpc.cli.demo import data_folder
from bulkgrpc.client import AsyncBulkClient, JobOptions, JobState, Reason, Refused, WrongInput
from bulkgrpc.datasets.definition import find_message
from bulkgrpc.datasets.sources import compile_proto
from bulkgrpc.stack.ports import choose_free
from tests.integration.service_values import Command, Parts
from tests.integration.test_readme import ROOT

pytest_plugins = ["tests.integration.service_parts"]

SCRIPT_DEADLINE_S = 150


def _inferred(command: Command, file: Path, table: str, folder: Path) -> Path:
    proto = folder / f"{table}.proto"
    proto.write_text(command.json("datasets", "infer", file, "--table", table)["proto"])
    return proto


def weather_file(folder: Path) -> tuple[Path, int]:
    return data_folder() / "weather.csv", 26_115


def flights_file(folder: Path) -> tuple[Path, int]:
    with zipfile.ZipFile(data_folder() / "flights.csv.zip") as archive:
        return Path(archive.extract("flights.csv", folder)), 336_776


def parquet_file(folder: Path) -> tuple[Path, int]:
    path = folder / "all.parquet"
    columns = {
        "id": pa.array([1, 2], pa.int64()),
        "day": pa.array([0, None], pa.date32()),
        "at": pa.array([0, 1], pa.timestamp("ms", "UTC")),
        "tags": pa.array([["a"], []], pa.list_(pa.string())),
        "tenant": pa.array(["x", "y"]),
        "xmin": pa.array([10, 20], pa.int32()),
        "data": pa.array([b"\0", None], pa.binary()),
    }
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path, 2


@pytest.mark.parametrize("make", [weather_file, flights_file, parquet_file], ids=lambda make: make.__name__)
def test_a_proto_that_is_inferred_registers_and_loads_without_edits(
    make: Any, command: Command, parts: Parts, tenant: str, tmp_path: Path
) -> None:
    file, rows = make(tmp_path)
    table = f"inferred_{make.__name__}"
    command.json("datasets", "register", _inferred(command, file, table, tmp_path))
    report = command.json("load", file, "--dataset", table)
    assert (report["job"]["state"], report["job"]["counts"]["written"]) == ("SUCCEEDED", rows)
    assert parts.rows(f"SELECT count(*) FROM {table} WHERE tenant = %s", tenant) == [(rows,)]


V1 = """syntax = "proto3"; import "bulkgrpc/v1/options.proto";
message M { option (bulkgrpc.v1.dataset) = {table: "evolving" key: ["id"]}; int64 id = 1; string name = 2; %s }"""


def _version(folder: Path, more: str) -> tuple[bytes, Any]:
    file = folder / "evolving.proto"
    file.write_text(V1 % more)
    descriptors = compile_proto(file)
    return descriptors, message_factory.GetMessageClass(find_message(descriptors, "M"))


async def test_old_and_new_clients_go_on_side_by_side(
    client: AsyncBulkClient, parts: Parts, tenant: str, tmp_path: Path
) -> None:
    first, old = _version(tmp_path, "")
    plan = await client.plan_dataset(first, "M")
    assert (plan.new_version, plan.dataset.version) == (True, 1)
    assert plan.statements[0].startswith('CREATE TABLE "public"."evolving"')
    with pytest.raises(Refused) as missing:
        await client.get_dataset("evolving")
    assert missing.value.reason == Reason.DATASET_NOT_FOUND, "a plan does nothing"
    assert (await client.register_dataset(first, "M")).version == 1
    await (await client.submit("evolving", [old(id=1, name="a")])).wait()

    second, new = _version(tmp_path, "optional int32 size = 3; map<string, int32> sizes = 4;")
    plan = await client.plan_dataset(second, "M")
    assert plan.statements == (
        'ALTER TABLE "public"."evolving" ADD COLUMN "size" integer',
        'ALTER TABLE "public"."evolving" ADD COLUMN "sizes" jsonb',
    )
    assert [(await client.register_dataset(second, "M")).version for _ in range(2)] == [2, 2]
    assert [dataset.version async for dataset in client.list_dataset_versions("evolving")] == [2, 1]
    for records in ([old(id=2, name="b")], [new(id=3, name="c", size=7, sizes={"x": 1})]):
        for options in (JobOptions(), JobOptions(atomic=True)):
            batch = b"".join(b"\x12" + bytes([len(data)]) + data for data in (r.SerializeToString() for r in records))
            job = await (await client.submit("evolving", [batch], options=options)).wait()
            assert job.state is JobState.SUCCEEDED
    found = parts.rows("SELECT id, name, size, sizes FROM evolving WHERE tenant = %s ORDER BY id", tenant)
    assert found == [(1, "a", None, None), (2, "b", None, {}), (3, "c", 7, {"x": 1})]

    third, _ = _version(tmp_path, "optional string size = 3; map<string, int32> sizes = 4;")
    with pytest.raises(Refused, match="would be misread") as refused:
        await client.register_dataset(third, "M")
    assert refused.value.reason == Reason.DATASET_INCOMPATIBLE


async def test_clients_of_two_versions_stream_into_one_table_at_the_same_time_and_into_one_job(
    client: AsyncBulkClient, parts: Parts, tenant: str, tmp_path: Path
) -> None:
    first, old = _version(tmp_path, "")
    first = first.replace(b"evolving", b"together")
    await client.register_dataset(first, "M")
    second, new = _version(tmp_path, "optional int32 size = 3;")
    newest = await client.register_dataset(second.replace(b"evolving", b"together"), "M")
    turns = [asyncio.Event() for _ in range(20)]
    turns[0].set()

    async def in_turn(record: Any, start: int) -> AsyncIterator[bytes]:
        for turn in range(start, len(turns), 2):
            await turns[turn].wait()
            data = record(turn).SerializeToString()
            yield b"\x12" + bytes([len(data)]) + data
            if turn + 1 < len(turns):
                turns[turn + 1].set()

    jobs = await asyncio.gather(
        client.submit("together@1", in_turn(lambda n: old(id=n, name="old"), 0)),
        client.submit(newest, in_turn(lambda n: new(id=n, name="new", size=n), 1)),
    )
    ended = [await job.wait() for job in jobs]
    assert [(job.state, job.dataset_version) for job in ended] == [(JobState.SUCCEEDED, 1), (JobState.SUCCEEDED, 2)]
    found = parts.rows("SELECT id, name, size FROM together WHERE tenant = %s ORDER BY id", tenant)
    assert found == [(n, "new" if n % 2 else "old", n if n % 2 else None) for n in range(20)]

    class DeployedAnew(Exception):
        pass

    async def half() -> AsyncIterator[bytes]:
        yield b"\x12\x02\x08\x64"
        raise DeployedAnew

    with pytest.raises(DeployedAnew):
        await client.submit("together@1", half(), idempotency_key="half")
    data = new(id=101, size=5).SerializeToString()
    batches = [b"\x12\x02\x08\x64", b"\x12" + bytes([len(data)]) + data]
    job = await (await client.submit(newest, batches, idempotency_key="half")).wait()
    assert (job.state, job.dataset_version, job.counts.written) == (JobState.SUCCEEDED, 1, 2)
    found = parts.rows("SELECT id, size FROM together WHERE tenant = %s AND id >= 100 ORDER BY id", tenant)
    assert found == [(100, None), (101, 5)]
    with pytest.raises(Refused, match="no version 7") as refused:
        await client.submit("together@7", batches)
    assert refused.value.reason == Reason.DATASET_VERSION_NOT_FOUND
    with pytest.raises(WrongInput, match="is not a version"):
        await client.submit("together@new", batches)


async def test_what_a_worker_could_not_compile_is_refused_when_it_is_planned_or_registered(
    client: AsyncBulkClient, tmp_path: Path
) -> None:
    file = tmp_path / "ruled.proto"
    rule = '(buf.validate.field).cel = {id: "x" expression: "this ++"}'
    text = (V1 % f"Part part = 3; message Part {{ int32 size = 1 [{rule}]; }}").replace("evolving", "ruled")
    file.write_text(text.replace("import", 'import "buf/validate/validate.proto"; import', 1))
    descriptors = compile_proto(file)
    for register in (client.plan_dataset, client.register_dataset):
        with pytest.raises(Refused, match="cannot be compiled") as refused:
            await register(descriptors, "M")
        assert (refused.value.reason, refused.value.field) == (Reason.INVALID_DATASET, "part.size")


async def test_a_field_named_like_a_system_column_is_refused_when_it_is_planned_or_registered(
    client: AsyncBulkClient, tmp_path: Path
) -> None:
    file = tmp_path / "boxes.proto"
    file.write_text((V1 % "int32 xmin = 3;").replace("evolving", "boxes"))
    descriptors = compile_proto(file)
    for register in (client.plan_dataset, client.register_dataset):
        with pytest.raises(Refused, match="xmin is reserved") as refused:
            await register(descriptors, "M")
        assert (refused.value.reason, refused.value.field) == (Reason.INVALID_DATASET, "xmin")


async def test_a_name_that_a_type_has_is_refused(client: AsyncBulkClient, parts: Parts, tmp_path: Path) -> None:
    with psycopg.connect(parts.postgres, autocommit=True) as connection:
        connection.execute("CREATE TYPE colours AS ENUM ('red')")
    file = tmp_path / "f.proto"
    file.write_text((V1 % "").replace("evolving", "colours"))
    with pytest.raises(Refused, match="type colours exists") as refused:
        await client.register_dataset(compile_proto(file), "M")
    assert refused.value.reason == Reason.DATASET_EXISTS


async def test_a_table_that_is_no_datasets_is_left_alone(client: AsyncBulkClient, parts: Parts, tmp_path: Path) -> None:
    with psycopg.connect(parts.postgres, autocommit=True) as connection:
        connection.execute("CREATE TABLE foreigner (a integer)")
    file = tmp_path / "f.proto"
    file.write_text((V1 % "").replace("evolving", "foreigner"))
    with pytest.raises(Refused, match="belongs to no dataset") as refused:
        await client.register_dataset(compile_proto(file), "M")
    assert refused.value.reason == Reason.DATASET_EXISTS


def test_the_commands_of_the_page_about_datasets_run_as_they_stand(data_dir: Path, tmp_path: Path) -> None:
    script = (ROOT / "docs" / "datasets.md").read_text().split("```sh\n", 1)[1].split("```", 1)[0]
    port = choose_free()
    address = f"127.0.0.1:{port}"
    own = {"BULKGRPC_DATA_DIR": str(data_dir), "BULKGRPC_LISTEN": address, "BULKGRPC_SERVER": address, "COLUMNS": "200"}
    # As a reader has it: the virtual environment is below the folder in which the commands run.
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    run = subprocess.Popen(
        ["bash", "-c", "set -e\n" + script],
        cwd=tmp_path,
        env={**os.environ, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        # The server and the worker continue in the background and keep the pipe open: wait for the shell alone.
        code = run.wait(SCRIPT_DEADLINE_S)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        output, _ = run.communicate(timeout=10)
    assert code == 0, output
    assert 'key: ["site"]' in output
    assert 'ADD COLUMN "remark" text' in output
    assert "SUCCEEDED" in output
