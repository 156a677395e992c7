"""Which partitions this worker holds, under which epoch, and the offset that each takes next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bulkgrpc.model import Ownership


@dataclass(slots=True)
class Holdings:
    """The partitions that Kafka assigned, each in one of three states.

    waiting: to be acquired from the ledger, which raises the epoch; not before a time (s, monotonic clock).
    unsure: held, but where it stands must be read from the ledger again.
    held: may be written under its epoch, from its next offset on.
    """

    held: dict[int, Ownership] = field(default_factory=dict)
    unsure: dict[int, Ownership] = field(default_factory=dict)
    _waiting: dict[int, float] = field(default_factory=dict)

    def waiting(self, now_s: float) -> Sequence[int]:
        """Return the partitions to be acquired by now."""
        return sorted(partition for partition, not_before_s in self._waiting.items() if not_before_s <= now_s)

    def wait(self, partitions: Iterable[int], not_before_s: float) -> None:
        """Hold partitions no longer; acquire them, but not before a time."""
        for partition in partitions:
            self.held.pop(partition, None)
            self.unsure.pop(partition, None)
            self._waiting[partition] = not_before_s

    def hold(self, ownerships: Mapping[int, Ownership]) -> None:
        """The ledger says how we hold these partitions; those that went away meanwhile are left out."""
        for partition, ownership in ownerships.items():
            if partition in self._waiting or partition in self.unsure:
                self._waiting.pop(partition, None)
                self.unsure.pop(partition, None)
                self.held[partition] = ownership

    def doubt(self) -> Sequence[int]:
        """Make every held partition unsure; return them."""
        self.unsure.update(self.held)
        self.held.clear()
        return list(self.unsure)

    def drop(self, partitions: Iterable[int]) -> None:
        """Give partitions up: nothing of them may be written any more."""
        for partition in partitions:
            self.held.pop(partition, None)
            self.unsure.pop(partition, None)
            self._waiting.pop(partition, None)

    def take(self, partition: int, offset: int) -> Ownership | None:
        """Return the ownership under which the message at `offset` may be written and move on; None if it may not."""
        owned = self.held.get(partition)
        if owned is None or owned.next_offset != offset:
            return None
        self.held[partition] = replace(owned, next_offset=offset + 1)
        return owned
