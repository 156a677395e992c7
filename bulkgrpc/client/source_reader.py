"""Reads batches from the caller's source into the send queue, without ever blocking the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from bulkgrpc.client.model import Batch, Item, Source
from bulkgrpc.client.packing import Packer
from bulkgrpc.client.send_queue import SendQueue

CheckType = Callable[[str], Awaitable[None]]


async def read_source(source: Source, packer: Packer, queue: SendQueue, check_type: CheckType) -> None:
    """Move all items of `source` into the queue, then complete it.

    check_type: called once, with the full name of the messages' type, before their first batch is queued.
    An exception of the source, of the packer or of `check_type` ends the reading and completes the queue with it.
    """
    checked = False
    batches = _async_batches(source, packer) if isinstance(source, AsyncIterable) else _batches(source, packer)
    try:
        async for batch in batches:
            if packer.message_type and not checked:
                await check_type(packer.message_type)
                checked = True
            await queue.put(batch)
    except asyncio.CancelledError:
        raise
    except Exception as error:  # noqa: BLE001 — root of a task: `submit` raises the caller's own exceptions again
        queue.complete(error)
    else:
        queue.complete()


async def _async_batches(source: AsyncIterable[Item], packer: Packer) -> AsyncIterator[Batch]:
    async for item in source:
        for batch in packer.add(item):
            yield batch
    for batch in packer.flush():
        yield batch


async def _batches(source: Iterable[Item], packer: Packer) -> AsyncIterator[Batch]:
    # One thread for the whole submission: what the source uses, such as a database cursor, may be bound to a thread.
    thread = ThreadPoolExecutor(1, thread_name_prefix="bulkgrpc-source")
    loop = asyncio.get_running_loop()
    iterator = iter(source)
    try:
        while batches := await loop.run_in_executor(thread, _next_batches, iterator, packer):
            for batch in batches:
                yield batch
    finally:
        # The source may be waiting for something. Do not wait for it.
        thread.shutdown(wait=False, cancel_futures=True)


def _next_batches(iterator: Iterator[Item], packer: Packer) -> list[Batch]:
    for item in iterator:
        if batches := packer.add(item):
            return batches
    return packer.flush()
