"""The window of unacknowledged batches, against a simple model of it."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from bulkgrpc.client.model import Batch
from bulkgrpc.client.send_window import SendWindow

BATCH = Batch(b"12345678", 2)
moves = st.lists(st.sampled_from(["add", "take", "acknowledge", "rewind"]), max_size=200)


@given(moves, st.randoms(use_true_random=False))
def test_batches_are_sent_in_order_again_after_each_break_and_freed_only_when_acknowledged(
    steps: list[str], chance: random.Random
) -> None:
    window = SendWindow(bytes_max=80, batches_max=1000)
    added, acknowledged, expected = 0, 0, 0
    for step in steps:
        if step == "add" and not window.full:
            window.add(BATCH)
            added += 1
        elif step == "take":
            taken = window.next_unsent()
            assert (taken is None) == (expected == added)
            if taken is not None:
                assert taken.sequence == expected
                expected += 1
        elif step == "acknowledge":
            acknowledged = chance.randint(acknowledged, expected)
            window.acknowledge(acknowledged)
        elif step == "rewind":
            assert window.rewind() == acknowledged
            expected = acknowledged
        assert window.first_sequence == acknowledged
        assert window.buffered_bytes == (added - acknowledged) * len(BATCH.payload)
        assert window.buffered_bytes <= 80
        assert window.progress.acknowledged_records == acknowledged * BATCH.records


@given(st.integers(0, 20), st.integers(0, 20))
def test_batches_that_the_server_has_are_counted_and_not_held(known: int, given_batches: int) -> None:
    window = SendWindow(bytes_max=10_000, batches_max=1000)
    window.acknowledge(known)
    for _ in range(given_batches):
        window.add(BATCH)
    taken = []
    while (numbered := window.next_unsent()) is not None:
        taken.append(numbered.sequence)
    assert taken == list(range(known, given_batches))
    assert window.progress.acknowledged_batches == min(known, given_batches)
    assert window.progress.sent_batches == max(0, given_batches - known)


def test_a_batch_larger_than_the_buffer_is_taken_alone() -> None:
    window = SendWindow(bytes_max=4, batches_max=10)
    assert not window.full
    window.add(BATCH)
    assert window.full


def test_a_batch_sent_twice_counts_once() -> None:
    window = SendWindow(bytes_max=1000, batches_max=10)
    window.add(BATCH)
    window.next_unsent()
    window.rewind()
    window.next_unsent()
    assert window.progress.sent_records == BATCH.records
    assert window.progress.streams == 1
