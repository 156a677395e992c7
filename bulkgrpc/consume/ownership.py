"""Which partitions this worker owns, under which epoch, and the next offset of each. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bulkgrpc.positions import Outcome, Ownership


@dataclass(slots=True)
class OwnedPartitions:
    """The partitions that Kafka assigned to this worker, each in one of four states.

    | state       | meaning                                                                  | next state             |
    |-------------|--------------------------------------------------------------------------|------------------------|
    | waiting     | to be acquired from the ledger, not before a time (seconds, monotonic)   | owned                  |
    | unconfirmed | acquired, but its next offset must be read from the ledger again         | owned; fenced: waiting |
    | owned       | may be written under its epoch, from its next offset on                  | unconfirmed; held;     |
    |             |                                                                          | stopped                |
    | held        | owned, but its next message is of a newer format: it is not fetched      | unconfirmed            |
    | stopped     | its log does not match the ledger (`log_identity.examine`)               | waiting                |

    A revoked partition is in none of them. held: the format, by partition; `owned` has these partitions, too.
    """

    owned: dict[int, Ownership] = field(default_factory=dict)
    unconfirmed: dict[int, Ownership] = field(default_factory=dict)
    held: dict[int, int] = field(default_factory=dict)
    stopped: set[int] = field(default_factory=set)
    _waiting: dict[int, float] = field(default_factory=dict)

    def due(self, now_s: float) -> Sequence[int]:
        """Return the waiting partitions that may be acquired now, sorted."""
        return sorted(partition for partition, not_before_s in self._waiting.items() if not_before_s <= now_s)

    def wait(self, partitions: Iterable[int], not_before_s: float) -> None:
        """Make partitions waiting: they are acquired, but not before a time."""
        for partition in partitions:
            self.owned.pop(partition, None)
            self.held.pop(partition, None)
            self.unconfirmed.pop(partition, None)
            self.stopped.discard(partition)
            self._waiting[partition] = not_before_s

    def stop(self, partitions: Iterable[int]) -> Sequence[int]:
        """Stop those of the partitions that are assigned and not stopped yet. Returns them."""
        stopped = [number for number in partitions if number in self.assigned - self.stopped]
        self.release(stopped)
        self.stopped.update(stopped)
        return stopped

    @property
    def assigned(self) -> frozenset[int]:
        """The partitions that are in any state."""
        return frozenset(self.owned.keys() | self.unconfirmed.keys() | self._waiting.keys() | self.stopped)

    def confirm(self, ownerships: Mapping[int, Ownership]) -> None:
        """Make partitions owned, as the ledger reports them. Those that were revoked meanwhile are ignored."""
        for partition, ownership in ownerships.items():
            if partition in self._waiting or partition in self.unconfirmed:
                self._waiting.pop(partition, None)
                self.unconfirmed.pop(partition, None)
                self.owned[partition] = ownership

    def unconfirm(self) -> Sequence[int]:
        """Make every owned partition unconfirmed. Returns all unconfirmed partitions."""
        self.unconfirmed.update(self.owned)
        self.owned.clear()
        self.held.clear()
        return list(self.unconfirmed)

    def release(self, partitions: Iterable[int]) -> None:
        """Forget revoked partitions: nothing of them may be written."""
        for partition in partitions:
            self.owned.pop(partition, None)
            self.held.pop(partition, None)
            self.unconfirmed.pop(partition, None)
            self._waiting.pop(partition, None)
            self.stopped.discard(partition)

    def release_all(self) -> None:
        """Forget every partition: the group was left."""
        self.owned.clear()
        self.held.clear()
        self.unconfirmed.clear()
        self._waiting.clear()
        self.stopped.clear()

    def hold(self, partition: int, newer_format: int) -> None:
        """Do not write an owned partition from its next message on, which is of a newer format."""
        self.held[partition] = newer_format

    @property
    def fetched(self) -> Mapping[int, Ownership]:
        """The owned partitions that are not held."""
        return {partition: owned for partition, owned in self.owned.items() if partition not in self.held}

    def outcome(self, partition: int, offset: int) -> Outcome:
        """Return whether the message at `offset` may be written.

        | the partition | offset        | outcome                                              |
        |---------------|---------------|------------------------------------------------------|
        | owned         | = next offset | NEXT                                                 |
        | owned         | < next offset | REPLAY: it was fetched before a seek                 |
        | owned         | > next offset | GAP: the log skipped messages                        |
        | held          | any           | FENCED: it was fetched before the partition was held |
        | not owned     | any           | FENCED                                               |
        """
        owned = self.owned.get(partition)
        if owned is None or partition in self.held:
            return Outcome.FENCED
        if offset == owned.next_offset:
            return Outcome.NEXT
        return Outcome.REPLAY if offset < owned.next_offset else Outcome.GAP

    def advance(self, partition: int) -> None:
        """Move an owned partition past its next message."""
        self.pass_over(partition, self.owned[partition].next_offset + 1)

    def pass_over(self, partition: int, to_offset: int) -> None:
        """Move an owned partition to an offset: there is no message below it."""
        self.owned[partition] = replace(self.owned[partition], next_offset=to_offset)
