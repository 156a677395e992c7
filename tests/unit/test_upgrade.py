"""When the log says that something waits for a newer worker."""

from __future__ import annotations

from bulkgrpc.consume.upgrade import LOG_EVERY_S, WaitLog


def test_a_wait_is_logged_once_and_again_after_a_while() -> None:
    waits = WaitLog[int]()
    assert waits.due(1, 5, 100.0)
    assert not waits.due(1, 5, 100.0 + LOG_EVERY_S - 1)
    assert waits.due(1, 5, 100.0 + LOG_EVERY_S)
    assert not waits.due(1, 5, 101.0 + LOG_EVERY_S)


def test_each_message_that_is_waited_at_is_logged() -> None:
    waits = WaitLog[int]()
    assert waits.due(1, 5, 100.0)
    assert waits.due(2, 5, 100.0)
    assert waits.due(1, 6, 100.0)
