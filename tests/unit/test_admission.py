"""The bound of open streams, and their end when the server drains."""

from __future__ import annotations

import asyncio

import pytest

from bulkgrpc.errors import Reason, TooMuch, Unavailable
from bulkgrpc.ingest.admission import Admission


async def test_one_stream_too_many_is_refused_until_another_ends() -> None:
    admission = Admission(1)
    with admission.admit():
        with pytest.raises(TooMuch) as caught, admission.admit():
            pass
        assert caught.value.reason is Reason.TOO_MANY_STREAMS
        assert caught.value.retry_after_s > 0
    with admission.admit():
        assert admission.open_streams == 1
    await admission.until_idle()


async def test_draining_refuses_new_streams_and_disconnecting_ends_open_ones() -> None:
    admission = Admission(2)
    with admission.admit():
        admission.drain()
        with pytest.raises(Unavailable) as caught, admission.admit():
            pass
        assert caught.value.reason is Reason.DRAINING
        open_one = asyncio.create_task(admission.until_disconnected())
        await asyncio.sleep(0)
        assert not open_one.done()
        admission.disconnect()
        with pytest.raises(Unavailable):
            await open_one
