"""What the worker needs to notice that the ledger came back older, as protocols.

Adapters: `bulkgrpc.kafka.group_offsets` (GroupOffsets), `bulkgrpc.postgres.heartbeats` (Heartbeats),
`workers.ledger_watch` (LedgerWatch). They raise the exceptions of `bulkgrpc.consume.ports`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Protocol

from bulkgrpc.consume.heartbeat import Committed, Heartbeat, LedgerState, TookBack
from bulkgrpc.positions import Ownership


class GroupOffsets(Protocol):
    """What the consumer group committed."""

    def committed(self, partitions: Collection[int]) -> Mapping[int, Committed]:
        """Return what was committed of partitions; left out: nothing was. Raises RecordLogError."""


class Heartbeats(Protocol):
    """The heartbeats of the ledger. Every method raises StoreUnavailable, or StoreError."""

    def state(self) -> LedgerState:
        """Return what the ledger has."""

    def beat(self, server_start: datetime, last: int) -> Heartbeat | None:
        """Add a heartbeat and return it; None if the server is not the one that started then, or has one below `last`.

        last: the number of the last heartbeat that the caller knows, 0 if none.
        """

    def raise_to(self, number: int) -> None:
        """Add a heartbeat with a number above `number`."""

    def note(self, found: TookBack, ledger: LedgerState) -> None:
        """Store what a restore took back, for operators."""


class LedgerWatch(Protocol):
    """Whether PostgreSQL came back, perhaps older than what was applied. The poll loop uses it."""

    def start(self) -> None:
        """Begin to watch in the background."""

    def watch(self, owned: Mapping[int, Ownership]) -> None:
        """Watch over these positions from now on."""

    def acquired(self, acquired: Mapping[int, Ownership]) -> None:
        """Compare positions that were read from the ledger with what the group committed, before it commits again.

        Raises StoreUnavailable or StoreError, RecordLogError.
        """

    def restarted(self) -> bool:
        """Return, once, whether positions that are watched were read from another server, or before its restart."""

    def heartbeat(self) -> Heartbeat | None:
        """Return a new heartbeat, once, which is to be committed with every offset from now on."""
