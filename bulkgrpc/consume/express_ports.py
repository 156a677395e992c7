"""What the express path needs of the world, and the poll loop of it, as protocols.

Adapters: `bulkgrpc.kafka.express_log` (ExpressLog), `bulkgrpc.postgres.worker_ports` (ExpressWriter). They raise the
exceptions of `bulkgrpc.consume.ports`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from bulkgrpc.consume.assembly import Fetched
from bulkgrpc.consume.decode import PreparedChunk
from bulkgrpc.consume.ports import Applied, DatasetRegistry, Ledger
from bulkgrpc.positions import Ownership


class ExpressPath(Protocol):
    """What the poll loop needs of the express path, which serves those who wait behind hot tenants.

    serves: whether it has lately applied something.
    """

    @property
    def serves(self) -> bool: ...  # noqa: D102

    def start(self) -> None:
        """Be ready for `begin`."""

    def begin(self, owned: Mapping[int, Ownership], hot: frozenset[str]) -> None:
        """Serve all tenants but the hot ones ahead of the main path, unless that is under way."""

    def end(self) -> None:
        """Leave everything to the main path again."""

    def was_applied(self, fetched: Fetched) -> bool:
        """Return whether the message that the main path has come to was applied. Forgets it."""

    def forget(self) -> None:
        """Forget what was applied, and leave everything to the main path."""


class ExpressLog(Protocol):
    """Partitions of the records topic, read ahead of the main path. One thread uses it.

    caught_up: whether it was at the end of the log once.
    """

    caught_up: bool

    def fetch(self, messages_max: int, timeout_s: float, left: Container[str]) -> Sequence[Fetched]:
        """Return the next messages but those of some tenants. Raises RecordLogError."""

    def close(self) -> None:
        """Stop reading."""


class ExpressWriter(Protocol):
    """Applies messages ahead of the main path, each chunk in one transaction. One thread uses it."""

    def write(self, prepared: PreparedChunk) -> Applied:
        """Apply messages and commit.

        Raises LeftToMainPath if some may not be applied ahead, NotNext if a partition has another owner, WriteFailed if
        the store fails.
        """

    def close(self) -> None:
        """Release the connection. The next `write` opens another."""


@dataclass(frozen=True, slots=True)
class ExpressPorts:
    """What the express path is wired to. open_log: reads partitions from offsets on. clock: seconds, monotonic."""

    open_log: Callable[[Mapping[int, int]], ExpressLog]
    ledger: Ledger
    writer: ExpressWriter
    registry: DatasetRegistry
    clock: Callable[[], float] = time.monotonic
