"""Measures the backlog for the metrics of a server, as long as it runs: they are there although no worker runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Final, NoReturn

import structlog
from opentelemetry.metrics import Observation

from bulkgrpc import metrics
from bulkgrpc.consume.backlog import Backlog, DrainRate
from bulkgrpc.consume.ports import RecordLogError, StoreError

_log = structlog.get_logger()
LOOK_S: Final = 10.0
OLD_AFTER: Final = timedelta(seconds=60)
"""A backlog that was measured before is not reported any more: no value is better than one that is wrong."""


class BacklogWatch:
    """measure: asks the stores. Belongs to one event loop; one task calls `run`."""

    def __init__(self, measure: Callable[[], Backlog]) -> None:
        self._measure = measure
        self._rate = DrainRate()
        self._found: Backlog | None = None
        self._failed = ""

    async def run(self) -> NoReturn:
        """Measure until cancelled."""
        metrics.queue_depth.observe(self._depths)
        metrics.message_age.observe(self._ages)
        metrics.backlog_work.observe(self._work)
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Measure once."""
        try:
            found = await asyncio.to_thread(self._measure)
        except (RecordLogError, StoreError) as error:
            if not self._failed:
                _log.warning("backlog_unknown", error=str(error))
            self._failed = str(error)
        except Exception as error:  # noqa: BLE001 — the metrics would be missing until the next start
            _log.exception("backlog_unknown", error=str(error))
        else:
            self._rate.take(found)
            self._found, self._failed = found, ""

    @property
    def _current(self) -> Backlog | None:
        found = self._found
        return found if found is not None and datetime.now(UTC) - found.time < OLD_AFTER else None

    def _depths(self) -> Iterable[Observation]:
        found = self._current
        for partition, one in found.partitions.items() if found else ():
            yield Observation(one.messages, {"partition": partition})

    def _ages(self) -> Iterable[Observation]:
        found = self._current
        for partition, one in found.partitions.items() if found else ():
            yield Observation(one.age_s(datetime.now(UTC)), {"partition": partition})

    def _work(self) -> Iterable[Observation]:
        found = self._current
        if found is not None:
            yield Observation(self._rate.work_s(found))
