"""A conversion is exact: what is read back from a column of another type is what was sent, in every way of writing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from bulkgrpc.datasets.conversions import convert, over_limits, unfit_rows
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.rows import JSONB
from bulkgrpc.datasets.table_fit import Fit, Misfit, MisfitCode, fit
from bulkgrpc.postgres.table_contract import describe
from bulkgrpc.postgres.writers.copy import copy_rows
from tests.support.tables import Connection, dataset_of, new_database

I32 = st.one_of(st.sampled_from([-(2**31), -1, 0, 1, 2**31 - 1]), st.integers(-(2**31), 2**31 - 1))
U32 = st.one_of(st.sampled_from([0, 2**31, 2**32 - 1]), st.integers(0, 2**32 - 1))
I64 = st.one_of(st.sampled_from([-(2**63), 2**53 + 1, 2**63 - 1]), st.integers(-(2**63), 2**63 - 1))
U64 = st.one_of(st.sampled_from([0, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1))
F32 = st.floats(width=32)
F64 = st.floats()
NUMERIC = st.one_of(
    st.sampled_from([Decimal("9999999999999999.9999"), Decimal("-9999999999999999.9999"), Decimal("0.0001")]),
    st.decimals(-(10**15), 10**15, places=4),
)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
SPACED = st.one_of(TEXT, st.text("a é\t", max_size=8))
TIMES = st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=st.just(UTC))


@dataclass(frozen=True, slots=True)
class Source:
    """A type that a dataset writes. arrow: as a worker decodes it. types: of columns that take it exactly."""

    type: str
    arrow: pa.DataType
    values: st.SearchStrategy[Any]
    types: frozenset[str]


NUMERICS = {
    f"numeric({p},{s})": (p, s) for p, s in ((38, 10), (24, 4), (20, 4), (20, 0), (19, 0), (10, 0), (10, 2), (9, 0))
}
TEXTS = frozenset({"text", "varchar", "varchar(3)", "name", "short_text"})
WIDE = frozenset({"numeric", "amount", "numeric(38,10)", "numeric(24,4)"})
INTEGER_ARRAYS = frozenset({"integer[]", "bigint[]", "double precision[]", "numeric[]", "numeric(20,4)[]"})
TEXT_SOURCE = Source("text", pa.string(), SPACED, TEXTS)
SOURCES = [
    Source(
        "integer",
        pa.int32(),
        I32,
        frozenset({"integer", "bigint", "double precision", "numeric", "percent", "amount"})
        | {name for name, (p, s) in NUMERICS.items() if p - s >= 10},
    ),
    *(
        Source(
            "bigint",
            arrow,
            values,
            WIDE | {"bigint", "numeric(20,0)", "numeric(19,0)"},
        )
        for arrow, values in ((pa.int64(), I64), (pa.uint32(), U32))
    ),
    Source("numeric", pa.uint64(), U64, WIDE | {"numeric(20,0)"}),
    Source(
        "numeric(20,4)",
        pa.decimal128(20, 4),
        NUMERIC,
        WIDE | {"numeric(20,4)"},
    ),
    Source("real", pa.float32(), F32, frozenset({"real", "double precision"})),
    Source("double precision", pa.float64(), F64, frozenset({"double precision"})),
    Source("boolean", pa.bool_(), st.booleans(), frozenset({"boolean"})),
    TEXT_SOURCE,
    Source("bytea", pa.binary(), st.binary(max_size=8), frozenset({"bytea"})),
    Source("uuid", pa.binary(16), st.uuids(), frozenset({"uuid"})),
    Source("date", pa.date32(), st.dates(), frozenset({"date"})),
    Source("time", pa.time64("us"), st.times(), frozenset({"time", "time(6)"})),
    Source("timestamp with time zone", pa.timestamp("us", "UTC"), TIMES, frozenset({"timestamptz", "timestamptz(6)"})),
    Source(
        "interval",
        pa.duration("us"),
        st.timedeltas(timedelta(days=-100_000), timedelta(days=100_000)),
        frozenset({"interval", "interval(6)"}),
    ),
    Source("jsonb", pa.string(), st.integers(0, 99).map(str), frozenset({"jsonb", "document"})),
    Source("integer[]", pa.list_(pa.int32()), st.lists(I32, max_size=3), INTEGER_ARRAYS),
    Source("bigint[]", pa.list_(pa.int64()), st.lists(I64, max_size=3), frozenset({"bigint[]", "numeric[]"})),
    Source("numeric[]", pa.list_(pa.uint64()), st.lists(U64, max_size=3), frozenset({"numeric[]"})),
    Source("real[]", pa.list_(pa.float32()), st.lists(F32, max_size=3), frozenset({"real[]", "double precision[]"})),
    Source("double precision[]", pa.list_(pa.float64()), st.lists(F64, max_size=3), frozenset({"double precision[]"})),
    Source("boolean[]", pa.list_(pa.bool_()), st.lists(st.booleans(), max_size=3), frozenset({"boolean[]"})),
    Source("text[]", pa.list_(pa.string()), st.lists(TEXT, max_size=3), frozenset({"text[]"})),
    Source("bytea[]", pa.list_(pa.binary()), st.lists(st.binary(max_size=3), max_size=3), frozenset({"bytea[]"})),
]  # fmt: skip
OTHERS = [
    "char(3)", "char", "bpchar",
    "smallint", "oid", "money", "bit(8)", "xid8", "numeric(3,-2)", '"char"', "json", "xml", "inet", "timestamp",
    "timestamp(3)", "timestamptz(3)", "time(3)", "timetz", "interval(3)", "interval day", "interval second(6)", "mood",
    "point", "int4range", "varchar[]", "varchar(3)[]", "name[]", "smallint[]", "timestamptz[]", "jsonb[]", "uuid[]",
    "date[]", "short_text[]", "percent[]", "row_of", "tsvector", "regclass", "money[]", "oid[]",
]  # fmt: skip
MADE = """
    CREATE DOMAIN percent AS integer;
    CREATE DOMAIN amount AS numeric(38, 10);
    CREATE DOMAIN inner_text AS varchar(3);
    CREATE DOMAIN short_text AS inner_text CHECK (value <> 'no');
    CREATE DOMAIN document AS jsonb;
    CREATE TYPE mood AS ENUM ('good', 'bad');
    CREATE TYPE row_of AS (a integer);
"""
TARGETS = sorted({name for source in SOURCES for name in source.types} | set(NUMERICS) | set(OTHERS))


@pytest.fixture(scope="module")
def admin(request: pytest.FixtureRequest) -> Iterator[Connection]:
    with new_database(request) as database, psycopg.connect(database, autocommit=True) as opened:
        opened.execute(MADE.encode())
        yield opened


def _create(connection: Connection, types: list[str]) -> None:
    columns = ", ".join(["tenant text", "id bigint", *(f"v{number} {name}" for number, name in enumerate(types))])
    connection.execute(
        f"DROP TABLE IF EXISTS weather; CREATE TABLE weather ({columns}, PRIMARY KEY (tenant, id))".encode()
    )


def _fit(connection: Connection, dataset: Dataset) -> Fit | Misfit:
    found = describe(connection, dataset)
    assert found is not None
    return fit(dataset, found)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: f"{source.type}-{source.arrow}")
def test_only_what_is_exact_fits(admin: Connection, source: Source) -> None:
    # From PostgreSQL 15 on a scale may be below 0.
    targets = [name for name in TARGETS if "-" not in name or admin.info.server_version >= 150000]
    _create(admin, targets)
    dataset, fitting = dataset_of([source.type]), set()
    *key, column = dataset.columns
    table = describe(admin, dataset)
    assert table is not None
    for number, target in enumerate(targets):
        found = fit(replace(dataset, columns=(*key, replace(column, name=f"v{number}"))), table)
        if isinstance(found, Fit):
            fitting.add(target)
        else:
            assert found.code is MisfitCode.COLUMN_TYPE
    assert fitting == source.types


def _arrow(source: Source, values: list[Any]) -> pa.Array:
    if source.type == "uuid":
        values = [None if value is None else value.bytes for value in values]
    return pa.array(values, source.arrow)


def _rows(source: Source, values: list[Any]) -> pa.RecordBatch:
    metadata = JSONB if source.type == "jsonb" else None
    arrays = [pa.array(["acme"] * len(values)), pa.array(range(len(values)), pa.int64()), _arrow(source, values)]
    fields = [pa.field("tenant", pa.string()), pa.field("id", pa.int64())]
    return pa.record_batch(arrays, pa.schema([*fields, pa.field("v0", source.arrow, metadata=metadata)]))


def _straight(connection: Connection, fitted: Fit, rows: pa.RecordBatch) -> None:
    copy_rows(connection, sql.SQL("public.weather"), rows)


def _staged(connection: Connection, fitted: Fit, rows: pa.RecordBatch) -> None:
    columns = ", ".join(f"{name} {type_}" for name, type_ in zip(rows.schema.names, fitted.types, strict=True))
    connection.execute(f"CREATE TEMPORARY TABLE staging ({columns}) ON COMMIT DROP".encode())
    copy_rows(connection, sql.SQL("staging"), rows)
    names = ", ".join(rows.schema.names)
    connection.execute(f"INSERT INTO weather ({names}) SELECT {names} FROM staging".encode())


SETTINGS = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PAIRS = [(source, target) for source in SOURCES for target in sorted(source.types)]


def _same(left: Any, right: Any) -> bool:
    if isinstance(right, list):
        return isinstance(left, list) and len(left) == len(right) and all(map(_same, left, right))
    if isinstance(right, float):
        return (math.isnan(left) and math.isnan(right)) or (
            left == right and math.copysign(1, left) == math.copysign(1, right)
        )
    return bool(left == right)


@pytest.mark.parametrize(
    ("source", "target"), PAIRS, ids=lambda part: part if isinstance(part, str) else str(part.arrow)
)
def test_what_is_read_back_is_what_was_sent(admin: Connection, source: Source, target: str) -> None:
    _create(admin, [target])
    fitted = _fit(admin, dataset_of([source.type]))
    assert isinstance(fitted, Fit)
    # As text, a float has only as many digits as its own type needs, and a `character` no spaces at its end.
    read = {"text": "v0::text", "real": "v0::float8", "real[]": "v0::float8[]"}.get(source.type, "v0")

    @SETTINGS
    @given(st.lists(st.one_of(st.none(), source.values), min_size=1, max_size=20))
    def check(values: list[Any]) -> None:
        rows = _rows(source, values)
        unfit = np.zeros(len(values), np.bool_)
        for found in unfit_rows(rows, fitted.conversions):
            unfit |= found.rows
        if target == "short_text":
            unfit |= np.array([value == "no" for value in values])
        rows = rows.filter(pa.array(~unfit))
        for write in (_straight, _staged):
            with admin.transaction(force_rollback=True):
                write(admin, fitted, convert(rows, fitted.conversions))
                stored = admin.execute(f"SELECT id, {read} FROM weather ORDER BY id".encode()).fetchall()
            assert [number for number, _ in stored] == np.flatnonzero(~unfit).tolist()
            for number, value in stored:
                sent = int(values[number]) if source.type == "jsonb" and values[number] is not None else values[number]
                assert _same(value, sent), (write, value, sent)

    check()


@pytest.mark.parametrize("target", sorted(TEXTS - {"text", "varchar", "short_text"}))
@SETTINGS
@given(values=st.lists(st.one_of(st.none(), SPACED, st.text("é", min_size=30, max_size=33)), min_size=1, max_size=20))
def test_what_a_query_finds_over_the_limits_is_what_is_found_in_rows(
    admin: Connection, target: str, values: list[Any]
) -> None:
    _create(admin, [target])
    fitted = _fit(admin, dataset_of(["text"]))
    assert isinstance(fitted, Fit)
    rows, condition = _rows(TEXT_SOURCE, values), over_limits(fitted.conversions)
    assert condition is not None
    with admin.transaction(force_rollback=True):
        admin.execute("CREATE TEMPORARY TABLE staging (tenant text, id bigint, v0 text)")
        copy_rows(admin, sql.SQL("staging"), rows)
        query = sql.SQL("SELECT id FROM staging WHERE {} ORDER BY id").format(condition)
        over = [number for (number,) in admin.execute(query).fetchall()]
    found = unfit_rows(rows, fitted.conversions)
    assert over == (np.flatnonzero(found[0].rows).tolist() if found else [])


def test_a_row_that_a_domain_refuses_is_refused_by_postgresql(admin: Connection) -> None:
    _create(admin, ["short_text"])
    fitted = _fit(admin, dataset_of(["text"]))
    assert isinstance(fitted, Fit)
    assert fitted.types[2] == "character varying(3)"
    with pytest.raises(psycopg.errors.CheckViolation):
        _straight(admin, fitted, _rows(TEXT_SOURCE, ["no"]))
