"""Which offsets that Kafka skips are passed over, read again, or lost."""

from __future__ import annotations

import pytest

from bulkgrpc.consume.assembly import EndReached, Fetched
from bulkgrpc.consume.gaps import Gap, GapStep, GapWatch, gaps_in, step_after
from tests.support.worker_ports import seal


def test_what_one_read_did_not_return_is_read_again() -> None:
    watch = GapWatch()
    assert watch.read_twice(Gap(1, 5, 7)) is None
    watch.read(1, [Gap(1, 5, 7), Gap(1, 9, 10)])
    assert watch.read_twice(Gap(1, 5, 7)) == Gap(1, 5, 7)
    assert watch.read_twice(Gap(1, 9, 10)) == Gap(1, 9, 10)
    assert watch.read_twice(Gap(2, 5, 7)) is None


def test_a_gap_from_another_offset_is_another_gap() -> None:
    watch = GapWatch()
    watch.read(1, [Gap(1, 5, 7)])
    assert watch.read_twice(Gap(1, 6, 7)) is None


def test_only_the_last_read_counts() -> None:
    watch = GapWatch()
    watch.read(1, [Gap(1, 5, 7)])
    watch.read(1, [Gap(1, 7, 9)])
    assert watch.read_twice(Gap(1, 5, 7)) is None


def test_the_gaps_of_a_read_are_between_what_it_returned() -> None:
    read: list[Fetched | EndReached] = [
        seal(1, 5),
        seal(1, 8),
        EndReached(1, 9),
        EndReached(1, 10),
        seal(1, 10),
        seal(1, 12),
    ]
    assert gaps_in(1, 4, read) == [Gap(1, 4, 5), Gap(1, 6, 8), Gap(1, 9, 10), Gap(1, 11, 12)]
    assert gaps_in(1, 5, read[:1]) == []


@pytest.mark.parametrize(("first", "second"), [(7, 9), (9, 7)], ids=["the log grew", "a message was found"])
def test_only_what_two_reads_did_not_return_is_passed_over(first: int, second: int) -> None:
    watch = GapWatch()
    watch.read(1, [Gap(1, 5, first)])
    assert watch.read_twice(Gap(1, 5, second)) == Gap(1, 5, 7)


def test_a_gap_is_reported_once_though_its_chunk_is_not_applied() -> None:
    watch = GapWatch()
    assert watch.pass_over(Gap(1, 5, 7))
    assert not watch.pass_over(Gap(1, 5, 7))
    assert watch.pass_over(Gap(2, 5, 7))
    assert watch.pass_over(Gap(1, 7, 8))


@pytest.mark.parametrize(
    ("read_twice", "log_start", "step"),
    [
        (None, None, GapStep.READ_AGAIN),
        (None, 0, GapStep.READ_AGAIN),
        (Gap(1, 5, 7), None, GapStep.READ_AGAIN),
        (Gap(1, 5, 7), 0, GapStep.CONTINUE),
        (Gap(1, 5, 7), 5, GapStep.CONTINUE),
        (Gap(1, 5, 7), 6, GapStep.LOST),
        (Gap(1, 5, 7), 7, GapStep.LOST),
    ],
)
def test_what_kafka_deleted_is_lost_and_what_it_never_showed_is_passed_over(
    read_twice: Gap | None, log_start: int | None, step: GapStep
) -> None:
    assert step_after(read_twice, log_start) is step
