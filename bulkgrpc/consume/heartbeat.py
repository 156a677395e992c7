"""Whether the ledger is older than what workers have applied, as after a restore of PostgreSQL. Pure.

PostgreSQL cannot say so: what a restore takes back, it takes back as a whole. So workers beat: they raise a number in
the ledger every few seconds, and store it in Kafka, in the metadata of the offsets that their group commits. Kafka has
the offsets after the ledger has them, so that it never has a later one unless the ledger came back older.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from bulkgrpc.model import from_us, to_us


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A beat of the ledger.

    number: grows with each beat. time: of PostgreSQL's clock. database: for people: system identifier, timeline, LSN.
    """

    number: int
    time: datetime
    database: str = ""

    def to_note(self) -> str:
        """Return the metadata of an offset that a worker commits to Kafka."""
        return json.dumps({"beat": self.number, "time_us": to_us(self.time), "database": self.database})

    @classmethod
    def from_note(cls, note: str | None) -> Heartbeat | None:
        """Parse what `to_note` returned; None if it is anything else."""
        try:
            values = json.loads(note or "")
            return cls(int(values["beat"]), from_us(int(values["time_us"])), str(values["database"]))
        except (ValueError, TypeError, KeyError, OverflowError):
            return None


@dataclass(frozen=True, slots=True)
class Committed:
    """The next offset of a partition that the group committed, with the newest heartbeat then, if there was one."""

    next_offset: int
    heartbeat: Heartbeat | None = None


@dataclass(frozen=True, slots=True)
class LedgerState:
    """What the ledger has. heartbeat: the last one, None if there is none yet. positions: next offset by partition.

    moved_at: the number of the heartbeat at which an operator last moved positions; 0: never.
    """

    heartbeat: Heartbeat | None
    positions: Mapping[int, int]
    moved_at: int = 0


@dataclass(frozen=True, slots=True)
class TookBack:
    """What a restore took back. Workers read it again from Kafka.

    known: the newest heartbeat that Kafka has; None if it has none. spans: of each partition whose position went back,
    the ledger's next offset and the one that was applied.
    """

    known: Heartbeat | None
    spans: Mapping[int, tuple[int, int]] = field(default_factory=dict)


def newest(committed: Iterable[Committed]) -> Heartbeat | None:
    """Return the newest heartbeat that was committed, None if none was."""
    return max((one.heartbeat for one in committed if one.heartbeat), key=lambda beat: beat.number, default=None)


def taken_back(ledger: LedgerState, committed: Mapping[int, Committed]) -> TookBack | None:
    """Return what a restore took back, None if nothing shows that there was one.

    | Kafka's newest heartbeat | a committed offset                                             | returns       |
    |--------------------------|----------------------------------------------------------------|---------------|
    | above the ledger's       | any                                                            | TookBack      |
    | any other                | above the ledger's, committed since an operator moved the ledger | TookBack      |
    | any other                | any other                                                      | None          |
    """
    known = newest(committed.values())
    spans = {
        partition: (ledger.positions[partition], one.next_offset)
        for partition, one in sorted(committed.items())
        if ledger.positions.get(partition, one.next_offset) < one.next_offset
        and (one.heartbeat.number if one.heartbeat else 0) >= ledger.moved_at
    }
    beat = ledger.heartbeat.number if ledger.heartbeat else 0
    if spans or (known is not None and known.number > beat):
        return TookBack(known, spans)
    return None
