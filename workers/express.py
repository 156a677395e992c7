"""The express path: a thread that reads ahead of the main path and applies what waits there behind hot tenants.

What it may apply, and for whom, `bulkgrpc.consume.express` decides.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import structlog

from bulkgrpc import metrics
from bulkgrpc.consume.assembly import Chunk, ChunkBounds, ChunkBuilder, Fetched, received
from bulkgrpc.consume.dead_letters import load_datasets
from bulkgrpc.consume.decode import prepare
from bulkgrpc.consume.express import LeftToMainPath, TenantShares, is_late
from bulkgrpc.consume.express_ports import ExpressLog, ExpressPorts
from bulkgrpc.consume.ports import NotNext, RecordLogError, StoreError, WriteFailed
from bulkgrpc.model import Kind, Message
from bulkgrpc.positions import Ownership

log = structlog.get_logger()

FETCH_MESSAGES_MAX = 200
IDLE_POLL_S = 0.1
IDLE_WAIT_S = 1.0
"""How often the thread looks whether the worker stops, while there is no run."""
CHUNK = ChunkBounds(10_000, 4 * 1024 * 1024)
"""Small: what waits behind hot tenants is to be visible soon."""
APPLIED_MAX = 100_000
"""Applied messages that are remembered for the main path. It decodes any others again, and finds them known."""
SERVES_FOR_S = 5.0
"""For so long after something was applied, the express path counts as serving others."""
RUN_S_MIN = 5.0
"""After which a run ends if others are hot: it begins again at the main path's position."""
FAILED_WAIT_S = 1.0
LEFT_FOR_S = 60.0
"""How long a tenant whose rows failed is left to the main path, in later runs too."""


_Identity = tuple[uuid.UUID, Kind, int, bytes]
"""What tells a message from any other: two with the same one are the same message."""


@dataclass(slots=True)
class _Run:
    """One run: from the ledger's positions to the end of the log, and on with it, until the main path is in time.

    applied: where it remembers what it applied; not what the main path uses, once that has forgotten it.
    hot: the tenants for whose sake it began. left: all tenants that are left to the main path until the run is over, so
    that the order of their messages holds. begun_at_s: seconds of the monotonic clock.
    """

    owned: Mapping[int, Ownership]
    hot: frozenset[str]
    begun_at_s: float
    applied: dict[tuple[int, int], _Identity]
    left: set[str] = field(default_factory=set)
    over: threading.Event = field(default_factory=threading.Event)
    shares: TenantShares = field(default_factory=TenantShares)


class Express:
    """The thread. The poll loop uses it: `start` once; it ends when `stopping` is set. Implements `ExpressPath`."""

    def __init__(self, ports: ExpressPorts, stopping: threading.Event) -> None:
        self._ports = ports
        self._stopping = stopping
        self._run: _Run | None = None
        self._begun = threading.Event()
        # By partition and offset. The thread adds, the poll loop removes; each step is atomic.
        self._applied: dict[tuple[int, int], _Identity] = {}
        self._served_at_s = -SERVES_FOR_S
        self._left_until_s: dict[str, float] = {}
        self._thread = threading.Thread(target=self._serve_runs, name="express", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def begin(self, owned: Mapping[int, Ownership], hot: frozenset[str]) -> None:
        """Serve all tenants but the hot ones ahead of the main path, or continue to. owned: the partitions.

        A tenant that was hot is served again in the next run.
        """
        now_s = self._ports.clock()
        if (run := self._run) is None:
            self._run = _Run(dict(owned), hot, now_s, self._applied, set(hot))
            self._begun.set()
            return
        run.left.update(hot)
        if not run.hot <= hot and now_s - run.begun_at_s > RUN_S_MIN:
            run.over.set()

    @property
    def serves(self) -> bool:
        """Whether something of others was applied lately."""
        return self._ports.clock() - self._served_at_s < SERVES_FOR_S

    def end(self) -> None:
        """End the run, if there is one: no tenant waits, or the partitions change."""
        if (run := self._run) is not None:
            run.over.set()

    def was_applied(self, fetched: Fetched) -> bool:
        """Return whether the message that the main path has come to was applied. Forgets it."""
        if not self._applied or fetched.message is None:
            return False
        # Compared: a log that lost messages has others at the same offsets.
        return self._applied.pop((fetched.partition, fetched.offset), None) == _identity(fetched.message)

    def forget(self) -> None:
        """Forget what was applied: the ledger decides again."""
        self.end()
        # A new one: the run may be about to add what it has just applied, to a database that is gone.
        self._applied = {}

    def _serve_runs(self) -> None:
        while not self._stopping.is_set():
            if not self._begun.wait(IDLE_WAIT_S) or self._run is None:
                continue
            self._begun.clear()
            try:
                self._serve(self._run)
            except (StoreError, NotNext, RecordLogError) as error:
                log.info("express_ended", reason=str(error))
                self._stopping.wait(FAILED_WAIT_S)
            except Exception:
                # Any exception: the main path applies everything, only later.
                log.exception("express_failed")
                self._stopping.wait(FAILED_WAIT_S)
            self._run = None
        self._ports.writer.close()

    def _serve(self, run: _Run) -> None:
        found = self._ports.ledger.read(sorted(run.owned))
        owned = {p: at for p, at in found.items() if replace(at, next_offset=0) == replace(run.owned[p], next_offset=0)}
        # A copy: the poll loop removes some meanwhile.
        for at in list(run.applied):
            if at[0] not in owned or at[1] < owned[at[0]].next_offset:
                run.applied.pop(at, None)
        now_s = self._ports.clock()
        self._left_until_s = {tenant: until_s for tenant, until_s in self._left_until_s.items() if until_s > now_s}
        run.left.update(self._left_until_s)
        log.info("express_began", hot=sorted(run.left), next_offsets={p: at.next_offset for p, at in owned.items()})
        messages = self._ports.open_log({p: at.next_offset for p, at in owned.items()})
        try:
            while not (run.over.is_set() or self._stopping.is_set()):
                fetched = messages.fetch(FETCH_MESSAGES_MAX, IDLE_POLL_S, run.left)
                for chunk in _chunks(fetched, owned, run.left):
                    self._write(run, chunk)
                self._leave_hot(run, fetched, messages)
        finally:
            messages.close()
            log.info("express_over", left=sorted(run.left))

    def _write(self, run: _Run, chunk: Chunk) -> None:
        """Apply a chunk without the tenants that are left to the main path."""
        while (chunk := _without(chunk, run.left)).items:
            codec_of = load_datasets(chunk, self._ports.registry)
            try:
                applied = self._ports.writer.write(prepare(chunk, codec_of))
            except LeftToMainPath as error:
                run.left |= error.tenants
            except WriteFailed as error:
                if not error.failure.dataset:
                    raise
                specs = [item.message.spec for item in chunk.items]
                failed = {spec.key.tenant for spec in specs if spec.dataset == error.failure.dataset}
                self._left_until_s |= dict.fromkeys(failed, self._ports.clock() + LEFT_FOR_S)
                run.left |= failed
            else:
                metrics.count_records(applied.counts.values())
                if any(counts.accepted for counts in applied.counts.values()):
                    self._served_at_s = self._ports.clock()
                metrics.messages_express.add(len(chunk.items))
                if len(run.applied) < APPLIED_MAX:
                    run.applied |= {(item.partition, item.offset): _identity(item.message) for item in chunk.items}
                return

    def _leave_hot(self, run: _Run, fetched: Sequence[Fetched], messages: ExpressLog) -> None:
        """If this path is late as well, leave those to the main path that make the others wait here."""
        items = [item for one in fetched if (item := received(one)) is not None]
        run.shares.add(items, CHUNK, self._ports.clock())
        if messages.caught_up and run.shares.several and is_late(items, datetime.now(UTC)):
            run.left |= run.shares.hot()


def _chunks(fetched: Iterable[Fetched], owned: Mapping[int, Ownership], left: set[str]) -> Iterable[Chunk]:
    """Yield the messages as chunks.

    A tenant with a message that cannot be read, or whose job has several lanes, is left to the main path.
    """
    builder = ChunkBuilder(CHUNK)
    for one in fetched:
        item = received(one)
        if item is None or item.message.damage or item.message.lanes > 1:
            left.add(one.key.decode(errors="replace"))
            continue
        builder.add(item, owned[one.partition])
        if builder.full:
            yield builder.build()
            builder.clear()
    if not builder.empty:
        yield builder.build()


def _identity(message: Message) -> _Identity:
    return message.spec.key.job_id, message.kind, message.sequence, message.digest


def _without(chunk: Chunk, left: set[str]) -> Chunk:
    items = tuple(item for item in chunk.items if item.message.spec.key.tenant not in left)
    return replace(chunk, items=items, rows=sum(item.message.records for item in items))
