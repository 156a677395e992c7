"""What operators see of blocked datasets and of the ledger: states, what is parked, positions. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime


class DatasetState(enum.Enum):
    """Whether the records of a dataset are written now. The values are those of `bulkgrpc.v1.DatasetState`."""

    WRITABLE = 1
    """Workers write its records."""
    BLOCKED = 2
    """Its table cannot be written: messages are parked, and one of them is tried again at `next_trial_time`."""
    ISOLATING = 3
    """Messages are parked and applied beside the others, in small slices, to find the one at fault."""
    PAUSED = 4
    """An operator paused it: messages are parked until it is resumed."""
    DISCARDING = 5
    """An operator discards what was parked; it is blocked or paused again afterwards."""


@dataclass(frozen=True, slots=True)
class Parked:
    """What is parked. payload_bytes: without headers. oldest_time: None if nothing is parked."""

    messages: int = 0
    records: int = 0
    payload_bytes: int = 0
    jobs: int = 0
    oldest_time: datetime | None = None

    def __add__(self, other: Parked) -> Parked:
        """Add what is parked of other jobs."""
        times = [time for time in (self.oldest_time, other.oldest_time) if time is not None]
        return Parked(
            self.messages + other.messages,
            self.records + other.records,
            self.payload_bytes + other.payload_bytes,
            self.jobs + other.jobs,
            min(times, default=None),
        )


@dataclass(frozen=True, slots=True)
class TenantParked:
    """What is parked of a tenant."""

    tenant: str
    parked: Parked


@dataclass(frozen=True, slots=True)
class DatasetStatus:
    """Whether a dataset is written, why not, and what is parked of it.

    parked: of all tenants. reason: "" if it is writable. sqlstate: of the failure; "" if there was none. trials: since
    `block_time`. next_trial_time: None if there will be none. tenants: with parked messages, most bytes first.
    """

    dataset: str
    state: DatasetState
    parked: Parked = Parked()
    reason: str = ""
    sqlstate: str = ""
    block_time: datetime | None = None
    trials: int = 0
    next_trial_time: datetime | None = None
    tenants: Sequence[TenantParked] = ()


@dataclass(frozen=True, slots=True)
class BlockedDataset:
    """A dataset that is not written now, as admission needs it.

    tenant: whose records are not written; "" for all. cause: table, paused, isolating or job. stored_bytes: about what
    the parked messages take.
    """

    dataset: str
    tenant: str
    cause: str
    reason: str
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class PartitionPosition:
    """A partition in the ledger. next_offset: of the next message to be applied or parked.

    stop_reason: why no worker applies it, and what Kafka lost; "" if it is applied. stop_time: since when.
    """

    partition: int
    next_offset: int
    owner_epoch: int
    stop_reason: str = ""
    stop_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class ParkedQueue:
    """The parked messages of one tenant's dataset in one partition.

    reason: why they wait; "" if they are about to be applied. trials: of the dataset or the job that is blocked.
    """

    partition: int
    tenant: str
    dataset: str
    parked: Parked
    reason: str
    trials: int


@dataclass(frozen=True, slots=True)
class LedgerSnapshot:
    """The ledger of a topic. queues: those with the oldest messages first. omitted_queues: how many more there are."""

    topic: str
    partitions: Sequence[PartitionPosition]
    queues: Sequence[ParkedQueue]
    omitted_queues: int = 0
