"""Types of a team's own in a table that exists: the service's sessions do not keep the team from replacing them."""

from __future__ import annotations

import psycopg
import pytest

from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.decoding import Payload
from bulkgrpc.datasets.definition import ConflictPolicy, define
from bulkgrpc.datasets.rows import to_rows
from bulkgrpc.postgres.writers.table import TableWriter
from tests.blast.records import Shape, payload
from tests.support.database import Connection, count

TABLE = """
CREATE TYPE mood AS ENUM ('calm', 'windy');
CREATE TABLE bound (
  tenant text, id bigint, at timestamptz, small integer, large bigint, single real, number double precision,
  label text, note text, mood mood, PRIMARY KEY (tenant, id, at)
);
"""
# As a team does whose enum loses a value.
REPLACED = """
ALTER TYPE mood RENAME TO former;
CREATE TYPE mood AS ENUM ('calm', 'windy', 'stormy');
ALTER TABLE bound ALTER COLUMN mood TYPE mood USING mood::text::mood;
DROP TYPE former;
"""


@pytest.mark.parametrize("policy", ["ignore", "update", "reject"])
def test_a_type_of_a_table_that_is_written_can_be_replaced(
    connection: Connection, database: str, policy: ConflictPolicy
) -> None:
    connection.execute(TABLE)
    shape = Shape("bound", policy, "Bound")
    codec, writer = BatchCodec(define(shape.descriptors(), shape.message_type)), TableWriter()

    def write(first: int, revision: int) -> int:
        data = payload(first, 20, revision, message="Bound", tenant="acme")
        rows = to_rows(codec, [Payload("acme", 20, data)])
        with connection.transaction():
            return int(writer.write(connection, rows, rows.payload).written.sum())

    write(0, 0)
    # Half of the keys are known: these rows are staged.
    write(10, 1)
    with psycopg.connect(database, autocommit=True) as team:
        team.execute(REPLACED)
    assert write(20, 2) == (20 if policy == "update" else 10)
    assert count(connection, "bound") == 40
