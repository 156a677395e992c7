"""Tables that are submitted are in PostgreSQL, value by value."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from bulkgrpc.client import AsyncBulkClient, BulkClient, JobState, WrongInput
from bulkgrpc.datasets.sources import compile_proto
from tests.integration.service_values import Parts
from tests.support.file_cases import FOLDER
from tests.unit.test_client_tables import LIBRARIES, ROWS, TABLE

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "clients.md"
PROTO = ROOT / "proto" / "examples" / "v1" / "sensors.proto"

pytest_plugins = ["tests.integration.service_parts"]


@pytest.fixture
def client(running: Any, tenant: str) -> Any:
    with BulkClient(running.address, tenant=tenant) as client:
        client.register_dataset(compile_proto(FOLDER / "round_trip.proto"), "cases.v1.RoundTrip")
        yield client


@pytest.mark.parametrize("of", LIBRARIES, ids=range(len(LIBRARIES)))
def test_a_submitted_table_is_in_postgresql(client: BulkClient, parts: Parts, tenant: str, of: Any) -> None:
    job = client.submit("round_trips", of(TABLE)).wait(deadline_s=60)
    assert (job.state, job.counts.written) == (JobState.SUCCEEDED, len(ROWS))
    statement = f"SELECT {', '.join(TABLE.column_names)} FROM round_trips WHERE tenant = %s ORDER BY id DESC"
    assert parts.rows(statement, tenant) == [tuple(row.values()) for row in sorted(ROWS, key=lambda row: -row["id"])]


def test_the_same_table_with_the_same_key_is_one_job(client: BulkClient, tenant: str) -> None:
    first = client.submit("round_trips", TABLE, idempotency_key="table").wait(deadline_s=60)
    again = client.submit("round_trips", pl.from_arrow(TABLE), idempotency_key="table")
    assert again.replayed
    assert again.get().name == first.name


def test_a_table_that_does_not_fit_opens_no_job(client: BulkClient) -> None:
    unfit = TABLE.set_column(0, "id", pa.array([None, 2, 3]))
    with pytest.raises(WrongInput, match=r"row 1 .*column id"):
        client.submit("round_trips", unfit)
    assert not list(client.list_jobs())


async def test_the_asynchronous_client_takes_tables_too(client: BulkClient, running: Any, tenant: str) -> None:
    async with AsyncBulkClient(running.address, tenant=tenant) as asynchronous:
        job = await (await asynchronous.submit("round_trips", TABLE)).wait(deadline_s=60)
    assert job.counts.written == len(ROWS)


def test_the_example_of_the_docs_runs(running: Any, parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    section = PAGE.read_text().split("\n## Tables from Python\n")[1].split("\n## ")[0]
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    with BulkClient(running.address) as client:
        client.register_dataset(compile_proto(PROTO), "examples.v1.SensorReading")
    exec(example, {"SERVER": running.address})
    assert capsys.readouterr().out == "SUCCEEDED 2\n"
    found = parts.rows(
        "SELECT sensor_id, value, sampled_at::text FROM sensor_readings WHERE tenant = 'polars' ORDER BY 1"
    )
    assert found == [("S1", 0.5, "2026-01-01 00:00:00+00"), ("S2", 0.25, "2026-01-01 00:00:01+00")]
