"""The suite of the writers, through PgBouncer in transaction mode."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from bulkgrpc.postgres.connection import connect
from bulkgrpc.stack import Addresses
from tests.conformance.test_writers import *  # noqa: F403 — its tests, with the connection below
from tests.conftest import new_data_dir
from tests.support.database import Connection
from tests.support.pgbouncer import needs_pgbouncer, pgbouncer

pytestmark = needs_pgbouncer
# Behind a pooler no staging table outlasts its transaction.
del test_after_a_conflict_the_next_chunks_go_by_staging_and_then_straight_again  # noqa: F821 — of the suite


@pytest.fixture(scope="module")
def pooler(addresses: Addresses) -> Iterator[str]:
    """The connection string of a PgBouncer."""
    directory = new_data_dir()
    with pgbouncer(addresses.postgres, directory / "pooler", "transaction") as through:
        yield through
    shutil.rmtree(directory)


@pytest.fixture
def connection(database: str, pooler: str) -> Iterator[Connection]:
    """A connection as a worker has it behind a pooler."""
    with connect(make_conninfo(pooler, dbname=str(conninfo_to_dict(database)["dbname"])), "tests") as opened:
        yield opened
