"""Draws batches from what the caller gave, into the outbox, without ever blocking the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from bulkgrpc.client.model import Batch, Item, Source
from bulkgrpc.client.packing import Packer
from bulkgrpc.client.send_queue import Outbox

CheckType = Callable[[str], Awaitable[None]]


async def draw(source: Source, packer: Packer, outbox: Outbox, check_type: CheckType) -> None:
    """Move everything of `source` into the outbox, then say that it is complete.

    check_type: asked once, with the full name of the messages' type, before the first batch of them goes out.
    An exception of the source, of the packer or of `check_type` ends the drawing and is handed to the outbox.
    """
    checked = False
    batches = _async_batches(source, packer) if isinstance(source, AsyncIterable) else _batches(source, packer)
    try:
        async for batch in batches:
            if packer.message_type and not checked:
                await check_type(packer.message_type)
                checked = True
            await outbox.put(batch)
    except asyncio.CancelledError:
        raise
    except Exception as error:  # noqa: BLE001 — a task's root: the caller's own exceptions are handed back to the caller
        outbox.complete(error)
    else:
        outbox.complete()


async def _async_batches(source: AsyncIterable[Item], packer: Packer) -> AsyncIterator[Batch]:
    async for item in source:
        for batch in packer.add(item):
            yield batch
    for batch in packer.rest():
        yield batch


async def _batches(source: Iterable[Item], packer: Packer) -> AsyncIterator[Batch]:
    # One thread for the whole submission: what the source uses (a database cursor, say) may belong to a thread.
    thread = ThreadPoolExecutor(1, thread_name_prefix="bulkgrpc-draw")
    loop = asyncio.get_running_loop()
    iterator = iter(source)
    try:
        while drawn := await loop.run_in_executor(thread, _next_batches, iterator, packer):
            for batch in drawn:
                yield batch
    finally:
        # The source may be waiting for something of its own; nobody waits for it.
        thread.shutdown(wait=False, cancel_futures=True)


def _next_batches(iterator: Iterator[Item], packer: Packer) -> list[Batch]:
    for item in iterator:
        if batches := packer.add(item):
            return batches
    return packer.rest()
