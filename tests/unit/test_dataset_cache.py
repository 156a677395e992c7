"""The cache of datasets that streams use."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bulkgrpc.ingest.dataset_cache import FRESH_S, DatasetCache
from bulkgrpc.ingest.ports import PostgresUnavailable


class Asked:
    """A catalog that answers as the test says."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked = 0

    async def get(self, name: str, version: int = 0) -> Any:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return name


async def test_a_dataset_is_read_once_per_interval_and_cached_while_postgresql_is_unavailable() -> None:
    asked: Any = Asked()
    now_s = 0.0
    cache = DatasetCache(asked, clock=lambda: now_s)
    assert {str(await cache.get("weather")) for _ in range(3)} == {"weather"}
    assert asked.asked == 1
    now_s, asked.error = FRESH_S, PostgresUnavailable("unavailable")
    assert str(await cache.get("weather")) == "weather"
    with pytest.raises(PostgresUnavailable):
        await cache.get("other")


async def test_many_callers_share_one_read_and_a_cancelled_one_does_not_disturb_the_others() -> None:
    asked: Any = Asked()
    cache = DatasetCache(asked)
    wanting = [asyncio.create_task(cache.get("weather")) for _ in range(200)]
    await asyncio.sleep(0)
    wanting[0].cancel()
    answers = await asyncio.gather(*wanting, return_exceptions=True)
    assert {str(answer) for answer in answers[1:]} == {"weather"}
    assert asked.asked == 1
