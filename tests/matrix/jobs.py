"""Jobs of every kind of dataset: what each combination of stores must be able to write."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg

from bulkgrpc.client import AsyncBulkClient, Batch, JobOptions, JobState, Tls
from tests.chaos import datasets
from tests.chaos.datasets import BOUND, BOUND_IS_RIGHT, BOUND_TABLE, ROWS, TABLES

BATCHES = 3
ENDS_WITHIN_S = 60.0
WAYS = {"plain": JobOptions(), "atomic": JobOptions(atomic=True)}


async def write_every_kind(
    server: str, postgres: str, role: str, tenant: str = "default", *, token: str = "", ca: Path | None = None
) -> None:
    """Register each dataset and write two jobs to it, one of them atomic; compare the tables with what was sent.

    postgres: where the tables are, as a role that may create one. role: the service's.
    """
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(BOUND_TABLE.format(role=role))
    tls = None if ca is None else Tls(ca=ca)
    async with AsyncBulkClient(server, tenant=tenant, token=token, tls=tls) as client:
        for dataset in datasets.all_datasets().values():
            await client.register_dataset(dataset.descriptors, dataset.message_type)
        jobs = [
            _write(client, name, options, number * 10 * BATCHES * ROWS, tenant)
            for name in TABLES
            for number, options in enumerate(WAYS.values())
        ]
        await asyncio.gather(*jobs)
    with psycopg.connect(postgres, autocommit=True) as connection:
        for name, table in TABLES.items():
            left = datasets.left_by(name) * BATCHES - datasets.deleted_by_next(name) * (BATCHES - 1)
            found = connection.execute(f"SELECT count(*), count(DISTINCT value) FROM {table}".encode()).fetchone()
            assert found is not None
            assert found[0] == found[1], f"{name} has rows twice"
            assert found[0] == left * len(WAYS), name
        wrong = connection.execute(f"SELECT count(*) FROM {TABLES[BOUND]} WHERE NOT ({BOUND_IS_RIGHT})".encode())
        assert wrong.fetchone() == (0,)


async def _write(client: AsyncBulkClient, name: str, options: JobOptions, base: int, tenant: str) -> None:
    # Not from 0 on: a batch deletes rows with lower numbers.
    first = base + 10 * ROWS
    batches = [Batch(datasets.payload(name, first + number * ROWS, tenant=tenant), ROWS) for number in range(BATCHES)]
    handle = await client.submit(name, batches, options=options)
    job = await handle.wait(deadline_s=ENDS_WITHIN_S)
    assert (job.state, job.counts.written) == (JobState.SUCCEEDED, BATCHES * ROWS), f"{name}: {job}"
