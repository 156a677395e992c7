"""The life cycle of a server process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from bulkgrpc.ingest.admission import Admission
from bulkgrpc.server import serving
from bulkgrpc.settings import ServerSettings, load


async def test_a_producer_that_failed_for_good_ends_the_process_with_status_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running: Any = Mock(spec=serving.Serving)
    running.producer.fatal, running.admission, running.address = asyncio.Event(), Admission(1), "127.0.0.1:1"
    running.endpoint.announce_drain = AsyncMock()

    @asynccontextmanager
    async def served(*_: object, **__: object) -> AsyncIterator[Any]:
        yield running

    monkeypatch.setattr(serving, "serving", served)
    settings = load(ServerSettings, drain_s=60)
    status = asyncio.create_task(serving.serve(settings, lambda _: running.producer.fatal.set(), shared_port=False))
    async with asyncio.timeout(5):
        assert await status == 1
