"""The dry run of a message type: one process at a time, whatever its callers do."""

from __future__ import annotations

import asyncio
import threading

import pytest

from bulkgrpc.postgres import dry_run_process


async def test_a_caller_that_is_gone_gives_its_turn_back_when_the_process_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, may_end = asyncio.Queue[str](), threading.Event()
    loop = asyncio.get_running_loop()

    def run(request: bytes) -> dict[str, str]:
        loop.call_soon_threadsafe(begun.put_nowait, request.decode())
        may_end.wait(10)
        return {}

    monkeypatch.setattr(dry_run_process, "_run", run)
    monkeypatch.setattr(dry_run_process, "_one_at_a_time", asyncio.Semaphore(1))
    first = asyncio.create_task(dry_run_process.dry_run(b"", "First"))
    assert "First" in await begun.get()
    second = asyncio.create_task(dry_run_process.dry_run(b"", "Second"))
    first.cancel()
    await asyncio.wait([first])
    for _ in range(3):
        await asyncio.sleep(0)
    assert begun.empty()
    may_end.set()
    await second
    assert "Second" in await begun.get()
