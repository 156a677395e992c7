"""The bound of open streams, its share among tenants, and the end of streams when the server drains."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from bulkgrpc.errors import Reason, TooMuch, Unavailable
from bulkgrpc.ingest.admission import IDLE_AFTER_S, Admission, Slot


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def admission(clock: Clock) -> Admission:
    return Admission(20, clock)


@pytest.fixture
def streams() -> ExitStack:
    """Streams that stay open until the test ends."""
    return ExitStack()


def opened(streams: ExitStack, admission: Admission, tenant: str, count: int) -> list[Slot]:
    return [streams.enter_context(admission.admit(tenant)) for _ in range(count)]


def is_refused(admission: Admission, tenant: str) -> bool:
    try:
        with admission.admit(tenant):
            return False
    except TooMuch as refusal:
        return refusal.reason is Reason.TOO_MANY_STREAMS and refusal.retry_after_s > 0


async def is_taken(slot: Slot) -> bool:
    waiting = asyncio.create_task(slot.until_taken())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    if not waiting.done():
        waiting.cancel()
        return False
    with pytest.raises(Unavailable) as caught:
        await waiting
    assert caught.value.reason is Reason.IDLE_STREAM
    return True


async def test_one_stream_too_many_is_refused_until_another_ends(clock: Clock) -> None:
    admission = Admission(1, clock)
    with admission.admit("a"):
        assert is_refused(admission, "a")
        assert is_refused(admission, "b")
    with admission.admit("a"):
        assert admission.open_streams == 1
    await admission.until_idle()


async def test_one_tenant_alone_gets_all_slots_but_the_reserve(admission: Admission, streams: ExitStack) -> None:
    opened(streams, admission, "hot", 18)
    assert is_refused(admission, "hot")
    assert not is_refused(admission, "quiet")


async def test_in_the_reserve_a_tenant_gets_its_share_at_most(admission: Admission, streams: ExitStack) -> None:
    opened(streams, admission, "a", 9)
    opened(streams, admission, "b", 9)
    assert is_refused(admission, "a")
    assert is_refused(admission, "b")
    opened(streams, admission, "c", 2)
    assert admission.open_streams == 20
    assert is_refused(admission, "c")
    assert is_refused(admission, "d")


async def test_200_tenants_with_a_stream_each_get_all_slots(clock: Clock, streams: ExitStack) -> None:
    admission = Admission(200, clock)
    for number in range(200):
        opened(streams, admission, f"t-{number}", 1)
    assert admission.open_streams == 200


async def test_the_longest_idle_stream_of_a_tenant_with_more_gives_its_slot(
    admission: Admission, clock: Clock, streams: ExitStack
) -> None:
    slots = opened(streams, admission, "hot", 18)
    opened(streams, admission, "b", 2)
    for slot in slots[3:5]:
        streams.enter_context(slot.waiting())
        clock.now_s += 1
    clock.now_s += IDLE_AFTER_S
    opened(streams, admission, "c", 1)
    assert await is_taken(slots[3])
    assert not await is_taken(slots[4])
    opened(streams, admission, "d", 1)
    assert await is_taken(slots[4])
    assert is_refused(admission, "e")


async def test_a_stream_that_is_served_or_waits_shortly_keeps_its_slot(
    admission: Admission, clock: Clock, streams: ExitStack
) -> None:
    slots = opened(streams, admission, "hot", 18)
    opened(streams, admission, "b", 2)
    with slots[0].waiting():
        clock.now_s += 100
    streams.enter_context(slots[1].waiting())
    clock.now_s += IDLE_AFTER_S - 0.1
    assert is_refused(admission, "c")
    assert not any([await is_taken(slot) for slot in slots])


async def test_an_idle_stream_of_a_tenant_that_has_no_more_keeps_its_slot(
    admission: Admission, clock: Clock, streams: ExitStack
) -> None:
    slots = [opened(streams, admission, f"t-{number}", 1)[0] for number in range(20)]
    for slot in slots:
        streams.enter_context(slot.waiting())
    clock.now_s += 100
    assert is_refused(admission, "late")
    assert not any([await is_taken(slot) for slot in slots])


async def test_draining_refuses_new_streams_and_disconnecting_ends_open_ones() -> None:
    admission = Admission(2)
    with admission.admit("a"):
        admission.drain()
        with pytest.raises(Unavailable) as caught, admission.admit("a"):
            pass
        assert caught.value.reason is Reason.DRAINING
        open_one = asyncio.create_task(admission.until_disconnected())
        await asyncio.sleep(0)
        assert not open_one.done()
        admission.disconnect()
        with pytest.raises(Unavailable):
            await open_one
