"""The worker's ports in memory: the test decides what the log, the ledger, the registry and the writer report."""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType

from bulkgrpc.consume.assembly import Chunk, EndReached, Fetched
from bulkgrpc.consume.decode import DatasetNotFound, DecodableChunk, PreparedChunk
from bulkgrpc.consume.failures import BlockCause, Failure
from bulkgrpc.consume.heartbeat import Heartbeat
from bulkgrpc.consume.log_identity import Stop
from bulkgrpc.consume.ports import (
    Applied,
    Assigned,
    RecordLogError,
    Revoked,
    StoreUnavailable,
    WorkerPorts,
)
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.model import JobKey, JobSpec, Kind, Message
from bulkgrpc.positions import Outcome, Ownership
from workers.writer import NotApplied, Result


class FakeLog:
    """A `RecordLog`. pending: what `fetch` returns next. ends, starts: what `end` and `start` return, by partition.

    reached: what `ends_reached` returns after the next `fetch`.
    """

    def __init__(self) -> None:
        self.assigned: Assigned = lambda _: {}
        self.revoked: Revoked = lambda _: None
        self.pending: deque[Fetched] = deque()
        self.paused: set[int] = set()
        self.seeks: list[Mapping[int, int]] = []
        self.committed: dict[int, int] = {}
        self.notes: dict[int, str] = {}
        self.ends: dict[int, int | None] = {}
        self.starts: dict[int, int | None] = {}
        self.reached: list[EndReached] = []
        self.rejoined = 0
        self.failed: dict[int, str] = {}

    def join(self, assigned: Assigned, revoked: Revoked) -> None:
        self.assigned, self.revoked = assigned, revoked

    def assign(self, partitions: Sequence[int]) -> None:
        """Assign partitions, as RecordsConsumer does."""
        starts = self.assigned(partitions)
        self.pause(partition for partition in partitions if partition not in starts)
        self.resume(starts)

    def fetch(self, messages_max: int, timeout_s: float) -> Sequence[Fetched]:
        found = [message for message in self.pending if message.partition not in self.paused][:messages_max]
        for message in found:
            self.pending.remove(message)
        return found

    def ends_reached(self) -> Sequence[EndReached]:
        found, self.reached = self.reached, []
        return found

    def take_failed(self) -> Mapping[int, str]:
        failed, self.failed = self.failed, {}
        return failed

    def seek(self, offsets: Mapping[int, int]) -> None:
        self.seeks.append(dict(offsets))
        self.paused -= offsets.keys()

    def pause(self, partitions: Iterable[int]) -> None:
        self.paused |= set(partitions)

    def resume(self, partitions: Iterable[int]) -> None:
        self.paused -= set(partitions)

    def commit(self, offsets: Mapping[int, int], note: str = "") -> None:
        self.committed |= offsets
        self.notes |= dict.fromkeys(offsets, note)

    def end(self, partition: int) -> int | None:
        return self.ends.get(partition, 0)

    def start(self, partition: int) -> int | None:
        return self.starts.get(partition, 0)

    def rejoin(self, timeout_s: float) -> None:
        self.rejoined += 1
        self.assign([0, 1])

    def close(self, timeout_s: float) -> None:
        pass


class FakeLedger:
    """A `Ledger`. positions: of each partition."""

    def __init__(self) -> None:
        self.positions: dict[int, Ownership] = {}
        self.available = True
        self.server_start: datetime | None = None

    def acquire(self, partitions: Sequence[int]) -> Mapping[int, Ownership]:
        self._check()
        for partition in partitions:
            before = self.positions.get(partition, Ownership(partition, 0, 0))
            self.positions[partition] = Ownership(
                partition, before.next_offset, before.owner_epoch + 1, self.server_start
            )
        return {partition: self.positions[partition] for partition in partitions}

    def read(self, partitions: Sequence[int]) -> Mapping[int, Ownership]:
        self._check()
        return {partition: self.positions[partition] for partition in partitions}

    def _check(self) -> None:
        if not self.available:
            raise StoreUnavailable("the ledger is unavailable")


class FakeTopicWatch:
    """A `TopicWatch`. stops: what `check` returns. findings: what `found` returns, once."""

    def __init__(self) -> None:
        self.stops: dict[int, Stop] = {}
        self.findings: tuple[Collection[int], Mapping[int, Stop]] | None = None
        self.watched: Collection[int] = ()
        self.unexamined: set[int] = set()
        self.stored: dict[int, Stop] = {}
        self.available = True

    def start(self) -> None:
        pass

    def watch(self, partitions: Collection[int]) -> None:
        self.watched = partitions

    def found(self) -> tuple[Collection[int], Mapping[int, Stop]] | None:
        found, self.findings = self.findings, None
        return found

    def check(self, partitions: Collection[int]) -> tuple[Collection[int], Mapping[int, Stop]]:
        if not self.available:
            raise RecordLogError("Kafka does not answer")
        examined = set(partitions) - self.unexamined
        return examined, {number: stop for number, stop in self.stops.items() if number in examined}

    def stop(self, partition: int, stop: Stop) -> None:
        self.stored[partition] = stop


class FakeLedgerWatch:
    """A `LedgerWatch`. restarts, beat: what `restarted` and `heartbeat` return, once."""

    def __init__(self) -> None:
        self.restarts = False
        self.beat: Heartbeat | None = None
        self.watched: Mapping[int, Ownership] = {}
        self.compared: list[Mapping[int, Ownership]] = []
        self.available = True

    def start(self) -> None:
        pass

    def watch(self, owned: Mapping[int, Ownership]) -> None:
        self.watched = dict(owned)

    def acquired(self, acquired: Mapping[int, Ownership]) -> None:
        if not self.available:
            raise RecordLogError("Kafka does not answer")
        self.compared.append(acquired)

    def restarted(self) -> bool:
        found, self.restarts = self.restarts, False
        return found

    def heartbeat(self) -> Heartbeat | None:
        found, self.beat = self.beat, None
        return found


class FakeRegistry:
    """A `DatasetRegistry`. codecs: by name and version. jobs: the ledger's. asked: set by the first call of `codec`."""

    def __init__(self, codecs: Mapping[tuple[str, int], BatchCodec] = MappingProxyType({})) -> None:
        self.codecs = dict(codecs)
        self.jobs: set[JobKey] = set()
        self.available = True
        self.forgotten = 0
        self.asked = threading.Event()

    def codec(self, name: str, version: int) -> BatchCodec:
        self.asked.set()
        if not self.available:
            raise StoreUnavailable("the registry is unavailable")
        if (name, version) not in self.codecs:
            raise DatasetNotFound(f"version {version} of dataset {name} is not in the registry", version)
        return self.codecs[name, version]

    def has_job(self, job: JobKey) -> bool:
        return job in self.jobs

    def forget(self) -> None:
        self.forgotten += 1


class FakeDeadLetters:
    """A `DeadLetterQueue`."""

    def __init__(self) -> None:
        self.added: list[tuple[Fetched, str]] = []

    def add(self, message: Fetched, reason: str) -> None:
        self.added.append((message, reason))


class FakeWriter:
    """A `ChunkWriter`: each `write` returns or raises the next of `outcomes`."""

    def __init__(self, *outcomes: Applied | Exception) -> None:
        self.outcomes = deque(outcomes)
        self.written: list[PreparedChunk] = []
        self.blocked: list[tuple[str, BlockCause]] = []
        self.parking: list[frozenset[str]] = []
        self.closed = 0

    def block(self, dataset: str, cause: BlockCause, failure: Failure) -> None:
        self.blocked.append((dataset, cause))

    def write(self, chunk: DecodableChunk, blocked: Collection[str] = ()) -> Applied:
        self.written.append(chunk.prepared)
        self.parking.append(frozenset(blocked))
        outcome = self.outcomes.popleft()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self) -> None:
        self.closed += 1


class FakeQueue:
    """A `ChunkQueue` without a thread: results come when the test says so."""

    def __init__(self) -> None:
        self.submitted: deque[Chunk] = deque()
        self.results: deque[Result] = deque()

    @property
    def outstanding(self) -> int:
        return len(self.submitted) + len(self.results)

    @property
    def has_room(self) -> bool:
        return self.outstanding < 2

    def start(self) -> None:
        pass

    def submit(self, chunk: Chunk) -> None:
        self.submitted.append(chunk)

    def result(self, timeout_s: float) -> Result | None:
        return self.results.popleft() if self.results else None

    def stop(self, timeout_s: float) -> None:
        pass

    def apply(self, applied: Applied | None = None) -> Chunk:
        """Report the oldest chunk as applied."""
        chunk = self.submitted.popleft()
        self.results.append(Result(chunk, applied or Applied({})))
        return chunk

    def time_out(self) -> None:
        """Report that rows of the oldest chunk took too long and were parked."""
        self.results.append(Result(self.submitted.popleft(), Applied({}, parked=1), too_slow=True))

    def deny(self, outcome: Outcome) -> None:
        """Report that the ledger does not accept the oldest chunk."""
        chunk = self.submitted.popleft()
        outcomes = {span.partition: outcome for span in chunk.spans}
        self.results.append(Result(chunk, NotApplied(outcomes)))


@dataclass
class FakeExpress:
    """An `ExpressPath`. applied: partitions and offsets. hot: of the run that is under way."""

    applied: set[tuple[int, int]] = field(default_factory=set)
    hot: frozenset[str] | None = None
    forgotten: int = 0
    serves: bool = False

    def start(self) -> None:
        pass

    def begin(self, owned: Mapping[int, Ownership], hot: frozenset[str]) -> None:
        self.hot = hot

    def end(self) -> None:
        self.hot = None

    def was_applied(self, fetched: Fetched) -> bool:
        return (fetched.partition, fetched.offset) in self.applied

    def forget(self) -> None:
        self.end()
        self.applied.clear()
        self.forgotten += 1


@dataclass
class Fakes:
    """All ports of a worker, and its clock. now_s: monotonic seconds."""

    log: FakeLog = field(default_factory=FakeLog)
    ledger: FakeLedger = field(default_factory=FakeLedger)
    registry: FakeRegistry = field(default_factory=FakeRegistry)
    dead_letters: FakeDeadLetters = field(default_factory=FakeDeadLetters)
    queue: FakeQueue = field(default_factory=FakeQueue)
    express: FakeExpress = field(default_factory=FakeExpress)
    topic: FakeTopicWatch = field(default_factory=FakeTopicWatch)
    ledger_watch: FakeLedgerWatch = field(default_factory=FakeLedgerWatch)
    now_s: float = 1000.0

    def ports(self) -> WorkerPorts:
        return WorkerPorts(
            self.log,
            self.ledger,
            FakeWriter(),
            self.registry,
            self.dead_letters,
            self.topic,
            self.ledger_watch,
            clock=lambda: self.now_s,
        )


def seal(partition: int, offset: int) -> Fetched:
    """A message that needs no dataset: a seal of a job of its own."""
    spec = JobSpec(JobKey("acme", uuid.uuid4()), "k", "d", 1)
    return fetched(partition, offset, Message(Kind.SEAL, spec, 0, 0, 0, 0, datetime.now(UTC)))


def fetched(partition: int, offset: int, message: Message | None, malformed: str = "") -> Fetched:
    return Fetched(partition, offset, (), b"acme", b"", message, malformed)
