"""Which messages of a job are sent again: what its lanes need next, in the order of the log."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from bulkgrpc.consume.plan import Lane
from bulkgrpc.consume.redrive import Redrive
from bulkgrpc.model import JobKey, JobSpec, Kind, Message

SPEC = JobSpec(JobKey.derive("acme", "k"), "k", "d", 1)


def batch(sequence: int) -> Message:
    return Message(Kind.BATCH, SPEC, 0, sequence, 1, 0, datetime.now(UTC))


def seal(sequence: int, lane: int = 0, lanes: int = 1) -> Message:
    partitions = tuple(range(lanes)) if lanes > 1 else ()
    return Message(Kind.SEAL, SPEC, lane, sequence, 0, 0, datetime.now(UTC), partitions=partitions)


@pytest.mark.parametrize(
    ("start", "log", "taken", "missing"),
    [
        (0, [batch(0), batch(1), seal(2)], [0, 1, 2], {}),
        (1, [batch(0), batch(1), seal(2)], [1, 2], {}),
        # Sent twice, by a stream that resumed.
        (0, [batch(0), batch(1), batch(0), batch(1), seal(2), seal(2)], [0, 1, 4], {}),
        # After a gap that was closed, and after one that was not.
        (0, [batch(1), batch(0), batch(1), seal(2)], [1, 2, 3], {}),
        (0, [batch(1), seal(2)], [], {0: 0}),
        (0, [batch(0), batch(2), seal(3)], [0], {0: 1}),
        (0, [batch(0), batch(1)], [0, 1], {0: 2}),
        # Its server did not know of a batch that an earlier stream had sent.
        (2, [batch(1), seal(1)], [1], {}),
        (0, [], [], {0: 0}),
    ],
)
def test_what_a_lane_needs_next_is_sent_again(
    start: int, log: Sequence[Message], taken: Sequence[int], missing: dict[int, int]
) -> None:
    redrive = Redrive({0: Lane(start, sealed=False)})
    assert [n for n, message in enumerate(log) if redrive.takes(message)] == taken
    assert redrive.missing == missing
    assert redrive.complete is (not missing)
    assert [redrive.has(message) for message in log] == [
        message.sequence < missing.get(0, 99) if message.kind is Kind.BATCH else not missing for message in log
    ]


def test_each_lane_is_followed_and_a_sealed_one_needs_nothing() -> None:
    redrive = Redrive({0: Lane(4, sealed=True), 1: Lane(1, sealed=False)})
    log = [batch(0), batch(1), batch(3), batch(2), seal(4, 0, 2), seal(4, 1, 2)]
    assert [n for n, message in enumerate(log) if redrive.takes(message)] == [1, 2, 5]
    assert redrive.complete


def test_the_seal_of_a_server_that_could_not_read_the_row_counts_for_every_lane() -> None:
    redrive = Redrive({0: Lane(0, sealed=False), 1: Lane(1, sealed=False)})
    assert [redrive.takes(message) for message in (batch(0), batch(1), seal(2))] == [True, True, True]
    assert redrive.complete
