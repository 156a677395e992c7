"""Who is served ahead of the main path, and when."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from bulkgrpc.consume.assembly import ChunkBounds, Received
from bulkgrpc.consume.express import HALF_LIFE_S, LATE_AFTER, TenantShares, is_late
from bulkgrpc.model import JobKey, JobSpec, Kind, Message

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BOUNDS = ChunkBounds(1000, 1000)


def batch(tenant: str, records: int = 0, payload_bytes: int = 0, age: timedelta = timedelta()) -> Received:
    spec = JobSpec(JobKey(tenant, uuid.UUID(int=1)), "", "x", 1)
    return Received(0, 0, Message(Kind.BATCH, spec, 0, 0, records, 0, NOW - age), b"x" * payload_bytes)


def hot(*items: Received) -> frozenset[str]:
    shares = TenantShares()
    shares.add(items, BOUNDS, 0.0)
    return shares.hot()


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        ({}, set()),
        ({"a": 1}, {"a"}),
        ({"a": 1000, "b": 1}, {"a"}),
        ({"a": 100, "b": 100}, set()),
        ({"a": 120, "b": 100}, set()),
        ({"a": 200, "b": 100}, {"a"}),
        ({"a": 500, "b": 500, "c": 1}, {"a", "b"}),
        ({"a": 60, **{f"t{n}": 10 for n in range(10)}}, set()),
        ({"a": 150, **{f"t{n}": 10 for n in range(10)}}, {"a"}),
        ({f"t{n}": 10 for n in range(1000)}, set()),
    ],
)
def test_tenants_with_more_than_their_share_are_hot_if_they_have_most_of_the_work(
    work: dict[str, int], expected: set[str]
) -> None:
    assert hot(*(batch(tenant, records) for tenant, records in work.items())) == expected


def test_bytes_count_as_records_do() -> None:
    assert hot(batch("wide", records=1, payload_bytes=900), batch("narrow", records=100, payload_bytes=1)) == {"wide"}


def test_a_tenant_that_has_stopped_is_not_hot_for_long() -> None:
    shares = TenantShares()
    shares.add([batch("a", 1000)], BOUNDS, 0.0)
    shares.add([batch("b", 100)], BOUNDS, 0.1)
    assert shares.hot() == {"a"}
    shares.add([batch("b", 100)], BOUNDS, 6 * HALF_LIFE_S)
    assert shares.hot() == {"b"}


def test_tenants_that_are_gone_are_forgotten() -> None:
    shares = TenantShares()
    shares.add([batch(f"t{n}", 10) for n in range(1000)], BOUNDS, 0.0)
    shares.add([batch("a", 10)], BOUNDS, 100 * HALF_LIFE_S)
    assert not shares.several


@pytest.mark.parametrize(("age", "late"), [(timedelta(0), False), (LATE_AFTER * 2, True), (-LATE_AFTER * 2, False)])
def test_a_message_that_waited_is_late_whatever_the_clock_of_its_server_says(age: timedelta, late: bool) -> None:
    assert is_late([batch("a"), batch("a", age=age)], NOW) is late
