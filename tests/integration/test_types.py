"""Every type through the whole way into a real table: what is read back is what was sent."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import psycopg
import pytest
from google.protobuf import json_format, message_factory
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.ddl import create_table
from bulkgrpc.datasets.decoding import Payload
from bulkgrpc.datasets.definition import find_message
from bulkgrpc.datasets.rows import to_rows
from bulkgrpc.postgres.writers import direct
from tests.support import examples
from tests.support.database import Connection
from tests.support.rejected import rejections

THINGS = examples.things()
CODEC = BatchCodec(THINGS)
Thing: Any = message_factory.GetMessageClass(find_message(THINGS.descriptors, THINGS.message_type))

I32 = st.integers(-(2**31), 2**31 - 1)
U32 = st.integers(0, 2**32 - 1)
I64 = st.integers(-(2**63), 2**63 - 1)
U64 = st.integers(0, 2**64 - 1)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)
BYTES = st.binary(max_size=5)
SORT = st.integers(-5, 5)
DOUBLE = st.floats(width=64)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
# psycopg reads no dates outside Python's, and none so near their ends that a time zone leads out.
TIMES = st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=st.just(UTC))
DURATIONS = st.timedeltas(timedelta(days=-100_000), timedelta(days=100_000))
DATES = st.dates()
DAY_TIMES = st.times()
SCALED = st.decimals(-(10**15), 10**15, places=4)
LONG = st.decimals(-(10**20), 10**20, places=10)


def _stamp(at: datetime) -> dict[str, int]:
    found = Timestamp()
    found.FromDatetime(at)
    return {"seconds": found.seconds, "nanos": found.nanos}


def _length(of: timedelta) -> dict[str, int]:
    found = Duration()
    found.FromTimedelta(of)
    return {"seconds": found.seconds, "nanos": found.nanos}


def _date(on: date) -> dict[str, int]:
    return {"year": on.year, "month": on.month, "day": on.day}


def _time(at: time) -> dict[str, int]:
    return {"hours": at.hour, "minutes": at.minute, "seconds": at.second, "nanos": at.microsecond * 1000}


def _optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), strategy)


ANY_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), FINITE, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=6,
)
PARTS: st.SearchStrategy[Any] = st.recursive(
    st.just({}),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "label": TEXT,
            "weight": DOUBLE,
            "serial": U64,
            "seal": BYTES,
            "sort": st.integers(0, 2),
            "made_at": TIMES.map(_stamp),
            "lasts": DURATIONS.map(_length),
            "parts": st.lists(inner, max_size=2),
            "sizes": st.dictionaries(TEXT, I64, max_size=2),
            "factor": st.floats(width=32),
            "painted": st.booleans().map(lambda value: {"value": value}),
            "tested": DATES.map(_date),
        },
    ),
    max_leaves=3,
)

As = Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value


def _wrapped(value: Any) -> Any:
    return {"value": value}


def _sort_name(number: int) -> str:
    return {0: "SORT_UNSPECIFIED", 1: "SORT_GOOD", 2: "SORT_BAD"}.get(number, str(number))


def _rfc3339(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


# Field: its values as they are read back, and what is sent for one.
FIELDS: dict[str, tuple[st.SearchStrategy[Any], As]] = {
    "f_double": (DOUBLE, _same),
    "f_float": (st.floats(width=32), _same),
    "f_int32": (I32, _same),
    "f_uint32": (U32, _same),
    "f_uint64": (U64, _same),
    "f_sint32": (I32, _same),
    "f_sint64": (I64, _same),
    "f_fixed32": (U32, _same),
    "f_fixed64": (U64, _same),
    "f_sfixed32": (I32, _same),
    "f_sfixed64": (I64, _same),
    "f_bool": (st.booleans(), _same),
    "f_string": (TEXT, _same),
    "f_bytes": (BYTES, _same),
    "f_enum_number": (SORT, _same),
    "o_int32": (_optional(I32), _same),
    "o_string": (_optional(TEXT), _same),
    "o_bool": (_optional(st.booleans()), _same),
    "r_double": (st.lists(DOUBLE, max_size=3), _same),
    "r_int64": (st.lists(I64, max_size=3), _same),
    "r_uint64": (st.lists(U64, max_size=3), _same),
    "r_bool": (st.lists(st.booleans(), max_size=3), _same),
    "r_string": (st.lists(TEXT, max_size=3), _same),
    "r_bytes": (st.lists(BYTES, max_size=3), _same),
    "r_enum_number": (st.lists(SORT, max_size=3), _same),
    "r_timestamp": (st.lists(TIMES, max_size=3), lambda times: [_stamp(at) for at in times]),
    "w_timestamp": (_optional(TIMES), _stamp),
    "w_duration": (_optional(DURATIONS), _length),
    "w_double": (_optional(DOUBLE), _wrapped),
    "w_uint64": (_optional(U64), _wrapped),
    "w_string": (_optional(TEXT), _wrapped),
    "w_bytes": (_optional(BYTES), _wrapped),
    "w_bool": (_optional(st.booleans()), _wrapped),
    "w_date": (_optional(DATES), _date),
    "w_time": (_optional(DAY_TIMES), _time),
    "w_decimal": (_optional(TEXT), _wrapped),
    "w_numeric": (_optional(SCALED), lambda value: {"value": f"{value:f}"}),
    "j_counts": (st.dictionaries(TEXT, I32, max_size=3), _same),
    "t_jsonb": (_optional(ANY_JSON.filter(lambda value: value is not None)), json.dumps),
    "t_numeric": (_optional(LONG), lambda value: f"{value:f}"),
    "t_uuid": (_optional(st.uuids()), str),
    "t_uuid_bytes": (_optional(st.uuids()), lambda value: value.bytes),
    "t_date": (_optional(DATES), lambda value: value.isoformat()),
    "t_timestamptz": (_optional(TIMES), _rfc3339),
    "t_bigint": (st.integers(0, 2**63 - 1), _same),
    "needed": (I32, _same),
    "indexed": (I32, _same),
}


@pytest.fixture
def things(connection: Connection) -> Connection:
    connection.execute(create_table(THINGS))
    return connection


def _write(connection: Connection, *records: bytes) -> list[dict[str, Any]]:
    """Write records to an empty table; return the rows, by id."""
    rows = to_rows(CODEC, [Payload("acme", len(records), examples.batch_of(records))])
    assert rejections(rows) == []
    with connection.transaction():
        connection.execute("TRUNCATE things")
        direct.write(connection, rows, rows.payload)
    names = [column.name for column in THINGS.columns]
    found = connection.execute(
        sql.SQL("SELECT {} FROM things ORDER BY id").format(sql.SQL(", ").join(map(sql.Identifier, names)))
    ).fetchall()
    return [dict(zip(names, row, strict=True)) for row in found]


def _equal(left: Any, right: Any) -> bool:
    if isinstance(right, float):
        # jsonb writes its numbers out: 1e20 comes back as an integer.
        return float(left) == right or (math.isnan(left) and math.isnan(right))
    if isinstance(left, list):
        return isinstance(right, list) and len(left) == len(right) and all(map(_equal, left, right))
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(_equal(left[k], right[k]) for k in left)
    return bool(left == right)


SETTINGS = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SETTINGS
@given(
    st.fixed_dictionaries({name: strategy for name, (strategy, _) in FIELDS.items()}),
    SORT,
    _optional(SORT),
    st.lists(SORT, max_size=3),
    st.fixed_dictionaries({"j_struct": st.dictionaries(TEXT, ANY_JSON, max_size=3), "j_value": ANY_JSON}),
)
def test_random_values_of_every_type_are_read_back_as_they_were_sent(
    things: Connection,
    values: dict[str, Any],
    sort: int,
    optional_sort: int | None,
    sorts: list[int],
    documents: dict[str, Any],
) -> None:
    sent = {name: FIELDS[name][1](value) for name, value in values.items() if value is not None}
    thing = Thing(id=1, f_enum=sort, o_enum=optional_sort, r_enum=sorts, unstored="x", **sent)
    json_format.ParseDict(documents, thing)
    empty = Thing(id=2, needed=0)
    full, unset = _write(things, thing.SerializeToString(), empty.SerializeToString())
    for name, value in values.items():
        found: Any = [datetime.fromisoformat(at) for at in full[name]] if name == "r_timestamp" else full[name]
        found = float(np.float32(found)) if name == "f_float" else found
        assert _equal(found, value), (name, found, value)
    assert _equal({name: full[name] for name in documents}, documents)
    assert full["f_enum"] == _sort_name(sort)
    assert full["o_enum"] == (None if optional_sort is None else _sort_name(optional_sort))
    assert full["r_enum"] == [_sort_name(number) for number in sorts]
    for name in unset:
        if name.startswith(("o_", "w_", "t_")) and name != "t_bigint":
            assert unset[name] is None, name
    assert (unset["d_int32"], unset["j_parts"], unset["j_counts"], unset["j_part"]) == (7, [], {}, None)


def _expected_json(message: Any) -> Any:
    """What the document of a part is: Protobuf's JSON, its 64-bit numbers as numbers."""
    found = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _mend_part(found)


def _mend_part(part: dict[str, Any]) -> dict[str, Any]:
    part["serial"] = int(part["serial"])
    if isinstance(part.get("weight"), int):
        part["weight"] = float(part["weight"])
    part["sizes"] = {name: int(size) for name, size in part["sizes"].items()}
    part["parts"] = [_mend_part(inner) for inner in part["parts"]]
    part.pop("factor")
    if "lasts" in part:
        part["lasts"] = Decimal(part["lasts"].removesuffix("s"))
    if "made_at" in part:
        part["made_at"] = datetime.fromisoformat(part["made_at"].replace("Z", "+00:00"))
    return part


def _read_part(part: dict[str, Any]) -> dict[str, Any]:
    if isinstance(part.get("weight"), int):
        part["weight"] = float(part["weight"])
    part["parts"] = [_read_part(inner) for inner in part["parts"]]
    part.pop("factor")
    if "lasts" in part:
        part["lasts"] = Decimal(part["lasts"].removesuffix("s"))
    if "made_at" in part:
        part["made_at"] = datetime.fromisoformat(part["made_at"].replace("Z", "+00:00"))
    return part


@SETTINGS
@given(_optional(PARTS), st.lists(PARTS, max_size=2), st.dictionaries(I64, PARTS, max_size=2))
def test_nested_messages_become_the_documents_of_protobufs_json(
    things: Connection, part: Any, parts: list[Any], by_number: dict[int, Any]
) -> None:
    thing = Thing(id=1, needed=1, j_part=part, j_parts=parts)
    for number, inner in by_number.items():
        thing.j_by_number[number].CopyFrom(Thing(j_part=inner).j_part)
    (row,) = _write(things, thing.SerializeToString())
    assert (row["j_part"] is None) == (part is None)
    if part is not None:
        assert _read_part(row["j_part"]) == _expected_json(thing.j_part)
    assert [_read_part(found) for found in row["j_parts"]] == [_expected_json(inner) for inner in thing.j_parts]
    expected = {str(number): _expected_json(inner) for number, inner in thing.j_by_number.items()}
    assert {number: _read_part(found) for number, found in row["j_by_number"].items()} == expected


def test_flattened_messages_oneofs_and_named_columns(things: Connection) -> None:
    thing = Thing(
        id=1,
        needed=1,
        place={"latitude": 1.5, "longitude": -2.5},
        money={"currency_code": "EUR", "units": 3, "nanos": 5},
        choice_text="x",
    )
    (row,) = _write(things, thing.SerializeToString())
    assert (row["place_latitude"], row["place_longitude"]) == (1.5, -2.5)
    assert (row["sum_currency_code"], row["sum_units"], row["sum_nanos"]) == ("EUR", 3, 5)
    assert (row["choice_number"], row["choice_text"]) == (None, "x")
    assert "unstored" not in row
    found = things.execute("SELECT count(*) FROM pg_indexes WHERE tablename = 'things'").fetchone()
    assert found == (2,)


UNFIT: list[tuple[dict[str, Any], str, str]] = [
    ({"f_string": "a\0b"}, "NUL_IN_TEXT", "f_string"),
    ({"r_string": ["", "\0"]}, "NUL_IN_TEXT", "r_string"),
    ({"w_string": {"value": "\0"}}, "NUL_IN_TEXT", "w_string"),
    ({"j_part": {"parts": [{"label": "\0"}]}}, "NUL_IN_TEXT", "j_part"),
    ({"j_counts": {"\0": 1}}, "NUL_IN_TEXT", "j_counts"),
    ({"j_parts": [{"made_at": {"seconds": 2**60}}]}, "OUT_OF_RANGE", "j_parts"),
    ({"j_parts": [{"lasts": {"seconds": 2**60}}]}, "OUT_OF_RANGE", "j_parts"),
    ({"j_value": {"number_value": math.inf}}, "OUT_OF_RANGE", "j_value"),
    ({"w_timestamp": {"seconds": 2**60}}, "OUT_OF_RANGE", "w_timestamp"),
    ({"r_timestamp": [{"seconds": 5}, {"seconds": -(2**60)}]}, "OUT_OF_RANGE", "r_timestamp"),
    ({"w_duration": {"seconds": 2**63 - 1}}, "OUT_OF_RANGE", "w_duration"),
    ({"w_date": {"year": 2013, "month": 2, "day": 29}}, "INVALID_VALUE", "w_date"),
    ({"w_date": {"year": 2013, "month": 2}}, "INVALID_VALUE", "w_date"),
    ({"w_date": {"year": 10000, "month": 1, "day": 1}}, "INVALID_VALUE", "w_date"),
    ({"w_time": {"hours": 24, "minutes": 1}}, "INVALID_VALUE", "w_time"),
    ({"w_time": {"minutes": 60}}, "INVALID_VALUE", "w_time"),
    ({"w_numeric": {"value": "1.00001"}}, "INVALID_VALUE", "w_numeric"),
    ({"t_numeric": "1e5"}, "INVALID_VALUE", "t_numeric"),
    ({"t_numeric": "NaN"}, "INVALID_VALUE", "t_numeric"),
    ({"t_numeric": "1" * 29}, "INVALID_VALUE", "t_numeric"),
    ({"t_uuid": "6ba7b810"}, "INVALID_VALUE", "t_uuid"),
    ({"t_uuid_bytes": b"short"}, "INVALID_VALUE", "t_uuid_bytes"),
    ({"t_date": "2013-02-29"}, "INVALID_VALUE", "t_date"),
    ({"t_date": "31.1.2013"}, "INVALID_VALUE", "t_date"),
    ({"t_timestamptz": "2013-02-29T00:00:00Z"}, "INVALID_VALUE", "t_timestamptz"),
    ({"t_timestamptz": "2013-01-01T00:00:00"}, "INVALID_VALUE", "t_timestamptz"),
    ({"t_timestamptz": "0001-01-01T00:00:00+01:00"}, "OUT_OF_RANGE", "t_timestamptz"),
    ({"t_bigint": 2**63}, "INVALID_VALUE", "t_bigint"),
    ({"needed": None}, "NULL_VALUE", "needed"),
]


@pytest.mark.parametrize(("fields", "code", "field"), UNFIT)
def test_what_a_column_cannot_hold_is_rejected_with_field_and_reason(
    fields: dict[str, Any], code: str, field: str
) -> None:
    bad = Thing(**{"id": 2, "needed": 1, **fields}).SerializeToString()
    good = [Thing(id=number, needed=1).SerializeToString() for number in (1, 3)]
    rows = to_rows(CODEC, [Payload("acme", 3, examples.batch_of([good[0], bad, good[1]]))])
    (rejected,) = rejections(rows)
    assert rejected[1:4] == (1, code, field)
    assert rejected[4].startswith(f"field {field} ")
    assert rows.table.column("id").to_pylist() == [1, 3]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("+1", 1), ("-0", 0), ("000000000000000000000000000000000000000000001.50", Decimal("1.5")),
        ("0.00000000010000000000000000", Decimal("1E-10")), ("9" * 28, int("9" * 28)),
    ],
)  # fmt: skip
def test_every_spelling_of_a_decimal_that_fits_is_stored(things: Connection, text: str, value: Any) -> None:
    assert _write(things, Thing(id=1, needed=1, t_numeric=text).SerializeToString())[0]["t_numeric"] == value


def test_times_as_text_may_name_another_zone_and_more_digits(things: Connection) -> None:
    (row,) = _write(
        things, Thing(id=1, needed=1, t_timestamptz="2013-01-31T06:00:00.1234567+02:30").SerializeToString()
    )
    assert row["t_timestamptz"] == datetime(2013, 1, 31, 3, 30, 0, 123456, UTC)


def test_json_text_that_is_none_is_refused_by_the_table(things: Connection) -> None:
    rows = to_rows(
        CODEC, [Payload("acme", 1, examples.batch_of([Thing(id=1, needed=1, t_jsonb="{").SerializeToString()]))]
    )
    with pytest.raises(psycopg.errors.InvalidTextRepresentation), things.transaction():
        direct.write(things, rows, rows.payload)


def test_a_uuid_and_a_date_identify_a_record(connection: Connection, tmp_path: Any) -> None:
    file = tmp_path / "k.proto"
    file.write_text(
        'syntax = "proto3"; import "bulkgrpc/v1/options.proto"; import "google/type/date.proto"; message K {'
        'option (bulkgrpc.v1.dataset) = {table: "k" key: ["id", "day"] hash_partitions: 3};'
        "string id = 1 [(bulkgrpc.v1.column).type = COLUMN_TYPE_UUID]; google.type.Date day = 2; }"
    )
    dataset = examples.compiled(file, "K")
    connection.execute(create_table(dataset))
    kind: Any = message_factory.GetMessageClass(find_message(dataset.descriptors, "K"))
    ids = [uuid.UUID(int=number << 100) for number in (3, 1, 2)]
    records = [kind(id=str(i), day=_date(date(2020, 1, 5))).SerializeToString() for i in ids]
    rows = to_rows(BatchCodec(dataset), [Payload("acme", 4, examples.batch_of([*records, b""]))])
    assert [rejected[2] for rejected in rejections(rows)] == ["NULL_IN_KEY"]
    with connection.transaction():
        direct.write(connection, rows, rows.payload)
    assert connection.execute("SELECT id FROM k ORDER BY id").fetchall() == [(i,) for i in sorted(ids)]
