"""Datasets as streams need them: cached for seconds, and for longer while PostgreSQL is unavailable."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bulkgrpc.ingest.ports import DatasetCatalog, PostgresUnavailable, RegisteredDataset

FRESH_S: Final = 3.0
"""Age up to which a cached dataset is not read again."""
DATASETS_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class _Cached:
    registered: RegisteredDataset
    read_at_s: float


class DatasetCache:
    """Caches the newest version of datasets. Belongs to one event loop."""

    def __init__(self, catalog: DatasetCatalog, clock: Callable[[], float] = time.monotonic) -> None:
        self._catalog = catalog
        self._clock = clock
        self._datasets: dict[str, _Cached] = {}
        self._reads: dict[str, asyncio.Task[RegisteredDataset | None]] = {}

    async def get(self, name: str, version: int = 0) -> RegisteredDataset | None:
        """Return the newest version of a dataset, at most FRESH_S old; while PostgreSQL is unavailable, the last one.

        version: one that a client names; a cached dataset with a lower version is read again. Returns None if the
        dataset is not registered. Raises PostgresUnavailable if nothing usable is cached.
        """
        cached = self._datasets.get(name)
        usable = cached is not None and (not version or version <= cached.registered.dataset.version)
        if cached is not None and usable and self._clock() - cached.read_at_s < FRESH_S:
            return cached.registered
        try:
            found = await self._read(name)
            if found is not None and version and version > found.dataset.version:
                # The read may have started before the version was registered.
                found = await self._read(name)
        except PostgresUnavailable:
            if cached is None or not usable:
                raise
            return cached.registered
        return found

    def forget(self, name: str) -> None:
        """Read a dataset again when it is needed next."""
        self._datasets.pop(name, None)

    async def _read(self, name: str) -> RegisteredDataset | None:
        """Read a dataset once for all callers that need it now: 200 streams may open at the same time."""
        read = self._reads.get(name)
        if read is None:
            read = asyncio.ensure_future(self._catalog.get(name))
            self._reads[name] = read
            read.add_done_callback(lambda task: self._store(name, task))
        # Not `await read`: a caller that is cancelled must not cancel the read of the others.
        await asyncio.wait({read})
        return read.result()

    def _store(self, name: str, task: asyncio.Task[RegisteredDataset | None]) -> None:
        del self._reads[name]
        if task.cancelled() or task.exception() is not None:
            return
        found = task.result()
        if found is None:
            self._datasets.pop(name, None)
            return
        if len(self._datasets) >= DATASETS_MAX:
            self._datasets.clear()
        self._datasets[name] = _Cached(found, self._clock())
