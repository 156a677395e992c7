"""Texts of keys: their collation in the table, and the one order in which all writers lock them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bulkgrpc.datasets.evolution import Incompatible, evolve
from bulkgrpc.model import JobOptions, JobState, Message, digest_of
from bulkgrpc.postgres import ledger
from bulkgrpc.postgres.transaction import write_chunk
from bulkgrpc.postgres.writers.table import TableWriter
from tests.integration.test_skipping import SKIPPING
from tests.integration.test_transaction import TOPIC, chunk, job_row, message, seal
from tests.support import examples
from tests.support.database import Connection, register
from tests.support.tasks import apply_tasks

COLLATIONS = """
    SELECT attname::text, collname::text FROM pg_attribute LEFT JOIN pg_collation c ON c.oid = attcollation
    WHERE attrelid = 'sensor_readings'::regclass AND attnum > 0 ORDER BY attnum
"""
NAMES = ["a", "B", "_", "b", "A", "\u00e9", "Z"]


def _batch(sequence: int, names: list[str], options: JobOptions) -> tuple[Message, bytes]:
    payload = examples.batch_of([examples.reading(name, 5, 2.0) for name in names])
    return replace(message(sequence, len(names), options=options), digest=digest_of(payload)), payload


@pytest.mark.parametrize(("kept", "collation"), [(False, "C"), (True, "default")])
def test_texts_of_the_key_have_a_collation(connection: Connection, kept: bool, collation: str) -> None:
    register(connection, replace(examples.readings(), database_collation=kept))
    found: dict[str, str | None] = dict(connection.execute(COLLATIONS).fetchall())
    assert found == {"tenant": collation, "sensor_id": collation, "value": None, "sampled_at": None}


@pytest.mark.parametrize("kept", [False, True], ids=["C", "database's"])
@pytest.mark.parametrize("atomic", [False, True], ids=["chunk", "atomic"])
@pytest.mark.parametrize("trigger", [False, True], ids=["plain", "trigger"])
def test_rows_are_written_in_the_order_of_their_bytes_whatever_the_collation(
    connection: Connection, kept: bool, atomic: bool, trigger: bool
) -> None:
    register(connection, replace(examples.readings(), database_collation=kept))
    if trigger:
        connection.execute(SKIPPING.format(more="").encode())
    epoch = ledger.acquire(connection, TOPIC, [0])[0].owner_epoch
    options = JobOptions(atomic=atomic)
    messages = _batch(0, NAMES[:4], options), _batch(1, NAMES[4:], options), seal(2, options=options)
    write_chunk(connection, TOPIC, chunk(epoch, 0, *messages), TableWriter())
    apply_tasks(connection)
    assert job_row(connection) == (JobState.SUCCEEDED, len(NAMES), len(NAMES), 0, 0, 0)
    found = [name for (name,) in connection.execute("SELECT sensor_id FROM sensor_readings ORDER BY ctid")]
    assert found == sorted(NAMES, key=str.encode)


def test_the_collation_is_of_the_first_version() -> None:
    kept = replace(examples.readings(), database_collation=True)
    for old, new in ((examples.readings(), kept), (kept, examples.readings())):
        with pytest.raises(Incompatible, match=r"database_collation of dataset sensor_readings .* cannot become"):
            evolve(old, new)
