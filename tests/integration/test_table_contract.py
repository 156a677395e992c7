"""A table is what it is checked to be, in the transaction that writes it: every change is seen, under the lock."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg import sql

from bulkgrpc.datasets.binding import ExistingTable
from bulkgrpc.datasets.definition import Dataset, TimePartitions
from bulkgrpc.datasets.periods import PartitionPeriod
from bulkgrpc.datasets.table_fit import Fit, TableMisfit
from bulkgrpc.postgres.table_contract import TableContracts, describe, describe_for_registration
from tests.support.tables import Connection, dataset_of
from tests.support.waiting import wait_for

WEATHER = dataset_of(["double precision", "integer", "text"])
TABLE = "weather (tenant text, id bigint, v0 double precision, v1 integer, v2 text, PRIMARY KEY (tenant, id))"


@pytest.fixture
def admin(database: str) -> Iterator[Connection]:
    """A superuser's connection to a database with the table."""
    with psycopg.connect(database, autocommit=True) as opened:
        opened.execute(f"CREATE TABLE {TABLE}".encode())
        yield opened


@pytest.fixture
def writer(admin: Connection, database: str, role: str) -> Iterator[Connection]:
    """A connection of a role that has the rights that a worker needs, and no other."""
    name = sql.Identifier(role)
    admin.execute(sql.SQL("GRANT USAGE ON SCHEMA public, bulk TO {0}").format(name))
    admin.execute(sql.SQL("GRANT INSERT, SELECT, UPDATE ON weather TO {}").format(name))
    admin.execute(sql.SQL("GRANT TEMPORARY ON DATABASE {} TO {}").format(sql.Identifier(admin.info.dbname), name))
    admin.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM public").format(sql.Identifier(admin.info.dbname)))
    with psycopg.connect(database, autocommit=True, options=f"-c role={role}") as opened:
        yield opened
    admin.execute(sql.SQL("DROP OWNED BY {}").format(name))


@pytest.fixture
def contracts() -> TableContracts:
    return TableContracts()


def checked(contracts: TableContracts, connection: Connection, dataset: Dataset = WEATHER) -> Fit:
    with connection.transaction():
        return contracts.check(connection, dataset)


def change(connection: Connection, statements: str) -> None:
    connection.execute(statements.encode())


TRIGGER = """
    CREATE FUNCTION pass_over() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
    CREATE TRIGGER passes %s EXECUTE FUNCTION pass_over()
"""
VIEW = "ALTER TABLE weather RENAME TO other; CREATE VIEW weather AS SELECT * FROM other"
FOREIGN = """
    CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing;
    ALTER TABLE weather RENAME TO other; CREATE FOREIGN TABLE weather (tenant text) SERVER nowhere
"""
MISFITS = [
    ("ALTER TABLE weather RENAME COLUMN v0 TO other", "MISSING_COLUMN"),
    ("ALTER TABLE weather DROP COLUMN v0", "MISSING_COLUMN"),
    ("ALTER TABLE weather DROP COLUMN v0; ALTER TABLE weather ADD COLUMN v0 real", "COLUMN_TYPE"),
    ("ALTER TABLE weather ALTER COLUMN v0 TYPE numeric", "COLUMN_TYPE"),
    ("ALTER TABLE weather ALTER COLUMN v1 TYPE real", "COLUMN_TYPE"),
    ("ALTER TABLE weather ALTER COLUMN v1 TYPE smallint", "COLUMN_TYPE"),
    ("ALTER TABLE weather ALTER COLUMN id TYPE double precision", "COLUMN_TYPE"),
    ("ALTER TABLE weather ALTER COLUMN id TYPE timestamptz USING to_timestamp(id)", "COLUMN_TYPE"),
    ("ALTER TABLE weather ALTER COLUMN v2 TYPE jsonb USING to_jsonb(v2)", "COLUMN_TYPE"),
    ("DROP TABLE weather; CREATE TABLE weather (tenant text, id text)", "COLUMN_TYPE"),
    (
        "ALTER TABLE weather DROP COLUMN v0; "
        "ALTER TABLE weather ADD COLUMN v0 double precision GENERATED ALWAYS AS (1) STORED",
        "GENERATED_COLUMN",
    ),
    (
        "ALTER TABLE weather ALTER v1 SET NOT NULL; ALTER TABLE weather ALTER v1 ADD GENERATED ALWAYS AS IDENTITY",
        "GENERATED_COLUMN",
    ),
    ("ALTER TABLE weather ADD COLUMN v9 integer NOT NULL", "REQUIRED_COLUMN"),
    ("CREATE DOMAIN must AS integer NOT NULL; ALTER TABLE weather ADD COLUMN v9 must", "REQUIRED_COLUMN"),
    ("ALTER TABLE weather SET UNLOGGED", "UNLOGGED_TABLE"),
    (VIEW, "NOT_A_TABLE"),
    (FOREIGN, "NOT_A_TABLE"),
    ("ALTER TABLE weather DROP CONSTRAINT weather_pkey", "MISSING_KEY"),
    (
        "ALTER TABLE weather DROP CONSTRAINT weather_pkey; CREATE UNIQUE INDEX ON weather (id, tenant, v1)",
        "MISSING_KEY",
    ),
    ("ALTER TABLE weather DROP CONSTRAINT weather_pkey, ADD UNIQUE (tenant, id) DEFERRABLE", "DEFERRABLE_KEY"),
    (
        "CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false); "
        "ALTER TABLE weather ALTER COLUMN tenant TYPE text COLLATE any_case",
        "KEY_COLLATION",
    ),
    ("CREATE RULE moved AS ON INSERT TO weather DO INSTEAD NOTHING", "RULE_ON_TABLE"),
]


def test_a_dataset_that_was_bound_to_another_table_since_is_checked_against_that_one(
    admin: Connection, contracts: TableContracts
) -> None:
    change(admin, f"CREATE TABLE other {TABLE.removeprefix('weather ')}")
    in_key = ExistingTable("public", "weather", tenant_column="tenant", tenant_in_key=True)
    before = replace(WEATHER, existing=in_key)
    after = replace(WEATHER, version=2, existing=replace(in_key, table="other"))
    checked(contracts, admin, before)
    checked(contracts, admin, after)
    change(admin, "ALTER TABLE other DROP COLUMN v0")
    with pytest.raises(TableMisfit, match="column v0 is missing"):
        checked(contracts, admin, after)


@pytest.mark.parametrize(("statements", "code"), MISFITS)
def test_a_change_that_the_rows_do_not_fit_is_seen_before_they_are_written(
    admin: Connection, contracts: TableContracts, statements: str, code: str
) -> None:
    assert checked(contracts, admin).conversions == ()
    try:
        change(admin, statements)
    except psycopg.errors.FeatureNotSupported as unsupported:
        pytest.skip(str(unsupported))
    for _ in range(2):
        with pytest.raises(TableMisfit) as raised:
            checked(contracts, admin)
        assert raised.value.code == code
    if code == "COLUMN_TYPE":
        assert " in the table, dataset weather version 3 writes " in str(raised.value)


@pytest.mark.parametrize("repair", ["RENAME COLUMN other TO v0", "ADD COLUMN v0 double precision"])
def test_a_table_that_was_repaired_fits_again(admin: Connection, contracts: TableContracts, repair: str) -> None:
    fitted = checked(contracts, admin)
    change(admin, "ALTER TABLE weather RENAME COLUMN v0 TO other")
    with pytest.raises(TableMisfit):
        checked(contracts, admin)
    change(admin, f"ALTER TABLE weather {repair}")
    assert checked(contracts, admin) == fitted


PLAIN = Fit((), ("text", "bigint", "double precision", "integer", "text"), row_triggers=False, triggers=False)


@pytest.mark.parametrize(
    ("statements", "fitted"),
    [
        ("DROP TABLE weather; CREATE TABLE " + TABLE, PLAIN),
        ("ALTER TABLE weather ADD COLUMN w integer DEFAULT 1 NOT NULL, ADD CHECK (v1 > 0)", PLAIN),
        ("ALTER TABLE weather ADD COLUMN w serial, ADD COLUMN x bigint GENERATED ALWAYS AS IDENTITY", PLAIN),
        ("ALTER TABLE weather ADD COLUMN w integer GENERATED ALWAYS AS (1) STORED", PLAIN),
        ("ALTER TABLE weather ALTER COLUMN v1 SET NOT NULL", PLAIN),
        ("CREATE DOMAIN d AS integer DEFAULT 1 NOT NULL; ALTER TABLE weather ADD COLUMN w d", PLAIN),
        ("CREATE DOMAIN d AS text CHECK (value <> ''); ALTER TABLE weather ALTER COLUMN v2 TYPE d", PLAIN),
        ("CREATE UNIQUE INDEX ON weather (v1)", PLAIN),
        ("ALTER TABLE weather DROP CONSTRAINT weather_pkey; CREATE UNIQUE INDEX ON weather (id, tenant)", PLAIN),
        ("ALTER TABLE weather ENABLE ROW LEVEL SECURITY", PLAIN),
        (TRIGGER % "AFTER INSERT ON weather FOR EACH ROW", replace(PLAIN, triggers=True)),
        (TRIGGER % "BEFORE DELETE ON weather FOR EACH ROW", replace(PLAIN, triggers=True)),
        (TRIGGER % "BEFORE INSERT ON weather FOR EACH STATEMENT", replace(PLAIN, triggers=True)),
        (TRIGGER % "BEFORE INSERT ON weather FOR EACH ROW", replace(PLAIN, row_triggers=True, triggers=True)),
        (TRIGGER % "BEFORE UPDATE ON weather FOR EACH ROW", replace(PLAIN, row_triggers=True, triggers=True)),
        (
            TRIGGER % "BEFORE INSERT ON weather FOR EACH ROW" + "; ALTER TABLE weather ADD COLUMN w integer NOT NULL",
            replace(PLAIN, row_triggers=True, triggers=True),
        ),
        (TRIGGER % "BEFORE INSERT ON weather FOR EACH ROW" + "; ALTER TABLE weather DISABLE TRIGGER passes", PLAIN),
        ("ALTER TABLE weather ADD UNIQUE (v1) DEFERRABLE", PLAIN),
        (
            "CREATE TABLE other (a integer PRIMARY KEY); ALTER TABLE weather ADD FOREIGN KEY (v1) REFERENCES other",
            PLAIN,
        ),
        ("CREATE RULE kept AS ON DELETE TO weather DO INSTEAD NOTHING", PLAIN),
    ],
)
def test_a_change_that_the_rows_fit_is_seen_too(
    admin: Connection, contracts: TableContracts, statements: str, fitted: Fit
) -> None:
    assert checked(contracts, admin) == PLAIN
    before = _fingerprint(contracts, admin)
    change(admin, statements)
    assert checked(contracts, admin) == fitted
    assert _fingerprint(contracts, admin) != before


def _fingerprint(contracts: TableContracts, connection: Connection) -> str:
    return contracts._sessions[connection].fits[WEATHER.name, WEATHER.version].fingerprint


def test_a_trigger_that_is_enabled_again_is_seen(admin: Connection, contracts: TableContracts) -> None:
    change(admin, TRIGGER % "BEFORE INSERT ON weather FOR EACH ROW")
    for verb, fires in (("DISABLE", False), ("ENABLE", True), ("DISABLE", False)):
        change(admin, f"ALTER TABLE weather {verb} TRIGGER passes")
        assert checked(contracts, admin).row_triggers == fires


def test_an_index_whose_build_failed_is_no_key(admin: Connection, contracts: TableContracts) -> None:
    change(admin, "ALTER TABLE weather DROP CONSTRAINT weather_pkey")
    change(admin, "INSERT INTO weather VALUES ('a', 1), ('a', 1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        change(admin, "CREATE UNIQUE INDEX CONCURRENTLY ON weather (tenant, id)")
    with pytest.raises(TableMisfit, match="no valid unique index"):
        checked(contracts, admin)


@pytest.mark.parametrize(
    ("statements", "code"),
    [
        ("REVOKE UPDATE ON weather FROM {}", "MISSING_RIGHT"),
        ("REVOKE SELECT ON weather FROM {}", "MISSING_RIGHT"),
        ("REVOKE TEMPORARY ON DATABASE {database} FROM {}", "MISSING_RIGHT"),
        (
            "REVOKE INSERT ON weather FROM {0}; GRANT INSERT (tenant, id, v0, v1), DELETE ON weather TO {0}",
            "MISSING_RIGHT",
        ),
        ("ALTER TABLE weather ENABLE ROW LEVEL SECURITY", "ROW_SECURITY"),
    ],
)
def test_what_the_role_may_not_do_is_seen(
    admin: Connection, writer: Connection, role: str, contracts: TableContracts, statements: str, code: str
) -> None:
    assert checked(contracts, writer) == PLAIN
    names = {"database": sql.Identifier(admin.info.dbname)}
    admin.execute(sql.SQL(statements).format(sql.Identifier(role), **names))
    with pytest.raises(TableMisfit) as raised:
        checked(contracts, writer)
    assert raised.value.code == code
    assert role in str(raised.value)


def test_a_right_of_each_column_is_as_good_as_one_of_the_table(
    admin: Connection, writer: Connection, role: str, contracts: TableContracts
) -> None:
    statement = (
        "REVOKE ALL ON weather FROM {0}; GRANT SELECT (tenant, id), INSERT (tenant, id, v0, v1, v2), "
        "UPDATE (v0, v1, v2), DELETE ON weather TO {0}"
    )
    admin.execute(sql.SQL(statement).format(sql.Identifier(role)))
    assert checked(contracts, writer) == PLAIN


def test_to_ignore_what_is_there_takes_no_right_to_update(
    admin: Connection, writer: Connection, role: str, contracts: TableContracts
) -> None:
    admin.execute(sql.SQL("REVOKE UPDATE ON weather FROM {}").format(sql.Identifier(role)))
    assert checked(contracts, writer, replace(WEATHER, conflict_policy="ignore")) == PLAIN


def test_without_any_right_the_lock_is_refused(
    admin: Connection, writer: Connection, role: str, contracts: TableContracts
) -> None:
    admin.execute(sql.SQL("REVOKE ALL ON weather FROM {}").format(sql.Identifier(role)))
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        checked(contracts, writer)


def test_a_table_that_is_gone_is_undefined(admin: Connection, contracts: TableContracts) -> None:
    for statement in ("CREATE SCHEMA other; ALTER TABLE weather SET SCHEMA other", "DROP TABLE other.weather"):
        change(admin, statement)
        with pytest.raises(psycopg.errors.UndefinedTable):
            checked(contracts, admin)


HASHED = """
    ALTER TABLE weather RENAME TO other;
    CREATE TABLE weather (LIKE other INCLUDING ALL) PARTITION BY HASH (tenant, id);
    CREATE TABLE p0 PARTITION OF weather FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE p1 PARTITION OF weather FOR VALUES WITH (MODULUS 2, REMAINDER 1) PARTITION BY HASH (tenant, id);
    CREATE TABLE p2 PARTITION OF p1 FOR VALUES WITH (MODULUS 1, REMAINDER 0);
"""


@pytest.mark.parametrize(
    ("statements", "code"),
    [
        ("ALTER TABLE weather DETACH PARTITION p0", "MISSING_PARTITION"),
        ("DROP TABLE p1", "MISSING_PARTITION"),
        ("ALTER TABLE p2 SET UNLOGGED", "UNLOGGED_TABLE"),
    ],
)
def test_a_change_of_a_partition_is_seen(
    admin: Connection, contracts: TableContracts, statements: str, code: str
) -> None:
    change(admin, HASHED)
    assert checked(contracts, admin) == PLAIN
    change(admin, statements)
    with pytest.raises(TableMisfit) as raised:
        checked(contracts, admin)
    assert raised.value.code == code


def test_a_trigger_of_a_partition_is_seen(admin: Connection, contracts: TableContracts) -> None:
    change(admin, HASHED + TRIGGER % "BEFORE INSERT ON p2 FOR EACH ROW")
    assert checked(contracts, admin).row_triggers
    change(admin, "ALTER TABLE p2 DISABLE TRIGGER passes")
    assert not checked(contracts, admin).row_triggers


def test_without_its_default_partition_a_table_by_time_is_not_written(
    admin: Connection, contracts: TableContracts
) -> None:
    dataset = replace(WEATHER, time_partitions=TimePartitions("id", PartitionPeriod.DAY))
    change(
        admin,
        "ALTER TABLE weather RENAME TO other; CREATE TABLE weather (LIKE other INCLUDING ALL) PARTITION BY RANGE (id); "
        "CREATE TABLE p0 PARTITION OF weather FOR VALUES FROM (0) TO (9); CREATE TABLE p1 PARTITION OF weather DEFAULT",
    )
    assert checked(contracts, admin, dataset) == PLAIN
    change(admin, "ALTER TABLE weather DETACH PARTITION p0")
    assert checked(contracts, admin, dataset) == PLAIN
    change(admin, "ALTER TABLE weather DETACH PARTITION p1")
    with pytest.raises(TableMisfit, match="a partition is missing"):
        checked(contracts, admin, dataset)


@contextmanager
def _changing(database: str, statements: str) -> Iterator[Connection]:
    """Change the table in a transaction that is not committed yet."""
    with psycopg.connect(database) as opened:
        opened.execute(statements.encode())
        yield opened


def test_a_table_that_is_being_changed_is_waited_for_no_longer_than_half_a_second(
    admin: Connection, database: str, contracts: TableContracts
) -> None:
    with _changing(database, "ALTER TABLE weather ADD COLUMN w integer") as other:
        with admin.transaction():
            with pytest.raises(psycopg.errors.LockNotAvailable), admin.transaction():
                contracts.check(admin, WEATHER)
            # The transaction continues, with the time-out that it had.
            assert admin.execute("SHOW lock_timeout").fetchone() == ("0",)
        other.rollback()
    assert checked(contracts, admin) == PLAIN


def test_the_time_out_of_other_locks_is_that_of_the_session(database: str, admin: Connection) -> None:
    with psycopg.connect(database, autocommit=True, options="-c lock_timeout=7s") as opened, opened.transaction():
        TableContracts().check(opened, WEATHER)
        assert opened.execute("SHOW lock_timeout").fetchone() == ("7s",)


def test_a_partition_that_is_locked_is_not_waited_for(
    admin: Connection, database: str, contracts: TableContracts
) -> None:
    change(admin, HASHED)
    checked(contracts, admin)
    contracts = TableContracts()
    with _changing(database, "LOCK TABLE p0 IN ACCESS EXCLUSIVE MODE"):
        assert checked(contracts, admin) == PLAIN


def test_a_change_that_commits_while_the_lock_is_waited_for_is_seen(
    admin: Connection, database: str, contracts: TableContracts
) -> None:
    found: list[Fit] = []
    with psycopg.connect(database, autocommit=True, application_name="waits") as waiting:
        assert checked(contracts, waiting) == PLAIN

        def check() -> None:
            with waiting.transaction():
                waiting.execute("SELECT FROM weather_before")
                found.append(contracts.check(waiting, WEATHER))

        change(admin, "CREATE TABLE weather_before ()")
        with _changing(database, "ALTER TABLE weather ALTER COLUMN v1 TYPE bigint") as other:
            thread = threading.Thread(target=check)
            thread.start()
            waits = b"SELECT FROM pg_stat_activity WHERE application_name = 'waits' AND wait_event_type = 'Lock'"
            assert wait_for(lambda: admin.execute(waits).fetchone() is not None, 5)
            other.commit()
            thread.join(5)
    (fitted,) = found
    assert [conversion.column.name for conversion in fitted.conversions] == ["v1"]


def test_nobody_changes_the_table_until_the_transaction_ends(
    admin: Connection, database: str, contracts: TableContracts
) -> None:
    with admin.transaction():
        contracts.check(admin, WEATHER)
        with psycopg.connect(database, autocommit=True) as other:
            other.execute("SET lock_timeout = '50ms'")
            for statement in ("ALTER TABLE weather ALTER COLUMN v1 TYPE bigint", "DROP TABLE weather"):
                with pytest.raises(psycopg.errors.LockNotAvailable):
                    change(other, statement)


def test_a_table_that_did_not_change_is_not_described_again(
    admin: Connection, contracts: TableContracts, monkeypatch: pytest.MonkeyPatch
) -> None:
    described: list[str] = []

    def counting(connection: Connection, dataset: Dataset) -> Any:
        described.append(dataset.name)
        return describe(connection, dataset)

    monkeypatch.setattr("bulkgrpc.postgres.table_contract.describe", counting)
    for _ in range(3):
        checked(contracts, admin)
    change(admin, "INSERT INTO weather VALUES ('a', 1, 1, 1, 'x')")
    change(admin, "ANALYZE weather")
    change(admin, "VACUUM weather")
    checked(contracts, admin)
    assert described == ["weather"]
    change(admin, "ALTER TABLE weather ADD COLUMN w integer")
    checked(contracts, admin)
    assert described == ["weather", "weather"]


def test_what_is_known_on_one_connection_is_not_on_another(
    admin: Connection, database: str, contracts: TableContracts
) -> None:
    with psycopg.connect(database, autocommit=True) as other:
        assert checked(contracts, admin) == checked(contracts, other) == checked(TableContracts(), other)


def test_versions_of_a_dataset_have_fits_of_their_own(admin: Connection, contracts: TableContracts) -> None:
    older = replace(WEATHER, version=1, columns=WEATHER.columns[:3])
    for _ in range(2):
        assert checked(contracts, admin).types == PLAIN.types
        assert checked(contracts, admin, older).types == PLAIN.types[:3]


def test_a_check_outside_a_transaction_is_refused(admin: Connection, contracts: TableContracts) -> None:
    with pytest.raises(RuntimeError, match="in the transaction"):
        contracts.check(admin, WEATHER)


def test_a_transaction_that_might_see_the_past_is_refused(admin: Connection, contracts: TableContracts) -> None:
    admin.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    with pytest.raises(RuntimeError, match="READ COMMITTED"):
        checked(contracts, admin)


async def test_a_server_describes_a_table_as_a_worker_does(admin: Connection, database: str) -> None:
    async with await psycopg.AsyncConnection.connect(database) as server:
        assert await describe_for_registration(server, WEATHER) == describe(admin, WEATHER)
        gone = replace(WEATHER, name="no_such_table")
        assert await describe_for_registration(server, gone) is describe(admin, gone) is None
