"""What is acknowledged can be applied, whatever the settings; what cannot be a dataset is refused by its field."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkgrpc.client import AsyncBulkClient, Batch, Refused
from bulkgrpc.datasets import sources
from bulkgrpc.stack.ports import choose_free
from tests.blast import checker, evidence
from tests.blast.fault import Poison
from tests.blast.records import Shape
from tests.blast.stand import Stand
from tests.blast.traffic import Sent
from tests.support.processes import Process
from tests.support.waiting import eventually

EMPTY = 1_200_000
"""Records of two bytes each in one batch."""
RAISED = {"BULKGRPC_BATCH_RECORDS_MAX": "2000000", "BULKGRPC_BATCH_BYTES_MAX": "3000000"}
ODD = Path(__file__).parent / "odd.proto"


@pytest.fixture
def raised(standing: Stand, tmp_path: Path) -> Iterator[str]:
    """The address of a server that takes larger batches; "" if it refuses to start with such limits."""
    address = f"127.0.0.1:{choose_free()}"
    environment = {**standing.running.server.environment, **RAISED}
    server = Process("bulkgrpc.server.process", ("--listen", address), environment, tmp_path / "server.log")
    try:
        server.start()
    except AssertionError:
        assert "records" in server.log.read_text(), "a server that refuses its limits names them"
        address = ""
    yield address
    server.stop()


@pytest.mark.skipif(os.environ.get("BULKGRPC_BLAST_SLOW") is None, reason="takes a minute: set BULKGRPC_BLAST_SLOW")
@pytest.mark.timeout(300)
async def test_a_batch_of_raised_limits_is_accounted_for(standing: Stand, raised: str) -> None:
    if not raised:
        return
    shape = Shape("raised_limits", "ignore")
    poison = Poison(lambda _: [(b"\x12\x00" * EMPTY, EMPTY)], frozenset(range(EMPTY)), "NULL_IN_KEY")
    job = Sent("raised", shape.table, "raised-0", "during", 0, (EMPTY,), poison=poison)
    async with AsyncBulkClient(raised, tenant=job.tenant) as client:
        await client.register_dataset(shape.descriptors(), shape.message_type)
        try:
            batches = [Batch(data, count) for data, count in poison.batches(0)]
            await client.submit(shape.table, batches, idempotency_key=job.key)
        except Refused as refused:
            job.refused = refused.reason
        else:
            job.sealed = True

    def ended() -> bool:
        with standing.database() as connection:
            return not job.sealed or not evidence.unended(connection, [job.job_id])

    await eventually(ended, 200)
    with standing.database() as connection:
        found = evidence.collect(connection, [job.job_id], [shape.table])
    assert not checker.some(checker.check_dataset(found, shape.table, [job], "ignore"))
    assert not standing.note_exits()


async def test_the_name_of_a_system_column_is_refused_by_its_field(standing: Stand) -> None:
    descriptors = sources.compile_proto(ODD)
    async with AsyncBulkClient(standing.running.address) as client:
        for ask in (client.plan_dataset, client.register_dataset):
            with pytest.raises(Refused) as refused:
                await ask(descriptors, "tests.blast.v1.Odd")
            assert "xmin" in refused.value.message
            assert not refused.value.retriable
    assert not standing.note_exits()
