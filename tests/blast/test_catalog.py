"""The faults themselves: each can be applied to a table, and its repair leaves the table as it was."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from bulkgrpc.datasets.ddl import create_table
from bulkgrpc.datasets.definition import define
from bulkgrpc.kafka.partition import partition_of
from bulkgrpc.stack import Stack
from tests.blast import catalog
from tests.blast.catalog import FAULTS, PARTITIONS, Case
from tests.blast.fault import sql_names
from tests.blast.faults_kinds import existing_table
from tests.blast.run import COLUMNS, KEEP
from tests.blast.stand import SET_UP, Connection
from tests.blast.traffic import victims_of
from tests.support.role import add_service_role

OF_TABLES = {name: fault for name, fault in FAULTS.items() if fault.apply and not fault.whole}
ROWS = """
INSERT INTO {table} SELECT 'acme', n, to_timestamp(n / 1e6), n, n, n, n, 'r' || n, CASE WHEN n % 3 > 0 THEN 'n' || n END
FROM generate_series(1, 99) AS n
"""
EXISTING_ROWS = """
INSERT INTO {table} (tenant, at, id, small, large, single, number, label, note, mood)
SELECT 'acme', to_timestamp(n / 1e6), n, n, n, n, n, 'r' || n, CASE WHEN n % 3 > 0 THEN 'n' || n END,
       CASE WHEN n % 2 > 0 THEN 'windy' ELSE 'calm' END::blast.mood_{name}
FROM generate_series(1, 99) AS n
"""
DEFINITION = """
SELECT array_agg((attname, format_type(atttypid, atttypmod), attnotnull, attgenerated, attidentity, atthasdef)::text
                 ORDER BY attname)
FROM pg_attribute WHERE attrelid = to_regclass('{table}') AND attnum > 0 AND NOT attisdropped
UNION ALL
SELECT array_agg(pg_get_constraintdef(oid) ORDER BY pg_get_constraintdef(oid))
FROM pg_constraint WHERE conrelid = to_regclass('{table}')
UNION ALL
SELECT array_agg((relkind, relpersistence, relrowsecurity, relforcerowsecurity,
                  (SELECT count(*) FROM pg_trigger WHERE tgrelid = pg_class.oid),
                  pg_get_userbyid(relowner), has_table_privilege('{role}', oid, 'INSERT'),
                  has_table_privilege('{role}', oid, 'SELECT'), has_table_privilege('{role}', oid, 'UPDATE'))::text)
FROM pg_class WHERE oid = to_regclass('{table}')
"""


@pytest.fixture(scope="module")
def owner(own_stack: Stack) -> str:
    own = add_service_role(own_stack.addresses.postgres)
    with psycopg.connect(own_stack.addresses.postgres, autocommit=True) as connection:
        connection.execute(SET_UP)
    return own


@pytest.fixture
def admin(own_stack: Stack, owner: str) -> Iterator[Connection]:
    with psycopg.connect(own_stack.addresses.postgres, autocommit=True) as connection:
        yield connection


CASES = [
    *(Case(fault, fault.policies[0]) for fault in OF_TABLES.values()),
    *(case for case in catalog.kind_cases() if case.fault.apply and case.fault.repair),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_repair_leaves_the_table_as_it_was(admin: Connection, owner: str, case: Case) -> None:
    fault = case.fault
    shape = victims_of([case], "t")[0].shape
    if case.kind == "existing":
        admin.execute(existing_table(fault.hash_partitions).format(**sql_names(shape.table, COLUMNS)).encode())
    else:
        with psycopg.connect(owner, autocommit=True) as connection:
            made = create_table(define(shape.descriptors(), shape.message_type)).as_string()
            connection.execute(made.replace('"bulk".', '"public".').encode())
    (partition,) = admin.execute(
        "SELECT max(inhrelid::regclass::text) FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid AND c.relkind = 'r' "
        f"WHERE inhparent = 'public.{shape.table}'::regclass "
        "AND pg_get_expr(c.relpartbound, inhrelid) LIKE '%remainder 0)'"
    ).fetchone() or (None,)
    names = {**sql_names(shape.table, COLUMNS), "partition": str(partition)}

    def execute(text: str) -> list[tuple[object, ...]]:
        found = admin.execute(text.format(**names).encode())
        return found.fetchall() if found.description else []

    execute(EXISTING_ROWS if case.kind == "existing" else ROWS)
    definition, rows = execute(DEFINITION), execute("SELECT {columns} FROM {table} ORDER BY id")
    execute((KEEP if fault.keeps else "") + fault.apply)
    execute(fault.repair or "SELECT")
    assert execute(DEFINITION) == definition
    assert execute("SELECT {columns} FROM {table} ORDER BY id") == rows


def test_every_fault_is_in_the_full_selection_and_the_fast_ones_are_in_the_short_one() -> None:
    every, short = catalog.every_case(FAULTS.values()), catalog.short_cases(FAULTS.values())
    assert {case.fault.name for case in every} == set(FAULTS)
    assert {case.fault.name for case in short} == {name for name, fault in FAULTS.items() if not fault.slow}
    assert len({case.table("t") for case in every}) == len(every)


def test_a_fault_of_the_whole_database_runs_alone() -> None:
    for wave in catalog.waves(catalog.every_case(FAULTS.values())):
        assert len({case.fault.name for case in wave if case.fault.whole}) in (0, 1)
        assert len({case.fault.whole for case in wave}) == 1


def test_the_tenants_of_a_wave_are_on_partitions_of_their_own() -> None:
    tenants = [who for number in range(catalog.PAIRS) for who in catalog.tenants_of(number, "t")]
    assert {partition_of(who, PARTITIONS) for who in tenants} == set(range(PARTITIONS))
