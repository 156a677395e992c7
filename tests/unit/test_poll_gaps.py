"""How long the poll loop works between two polls of the log, with the real writer thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import replace

from bulkgrpc.consume.assembly import Fetched
from bulkgrpc.consume.decode import DecodableChunk
from bulkgrpc.consume.ports import Applied, Assigned, Revoked
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.model import JobCounts, Kind
from bulkgrpc.settings import WorkerSettings, load
from tests.support import examples
from tests.support.worker_ports import FakeExpress, FakeLog, FakeRegistry, Fakes, FakeWriter, seal
from workers.poller import Poller
from workers.writer import WriterThread

WORK_S_MAX = 0.1
LOAD_S = 1.0
WRITE_S = 0.3
RECORDS = 50_000
MESSAGES = 20


class TimedLog(FakeLog):
    """A log with one partition that notes the processor time of the polling thread between two calls of `fetch`."""

    def __init__(self) -> None:
        super().__init__()
        self.work_s: list[float] = []
        self._returned_at_s: float | None = None

    def join(self, assigned: Assigned, revoked: Revoked) -> None:
        super().join(assigned, revoked)
        self.assign([0])

    def fetch(self, messages_max: int, timeout_s: float) -> Sequence[Fetched]:
        if self._returned_at_s is not None:
            self.work_s.append(time.thread_time() - self._returned_at_s)
        found = super().fetch(messages_max, 0)
        if not found:
            threading.Event().wait(min(timeout_s, 0.01))
        self._returned_at_s = time.thread_time()
        return found


class SlowRegistry(FakeRegistry):
    """A registry that works for LOAD_S when a codec is first asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.loads = 0

    def codec(self, name: str, version: int) -> BatchCodec:
        if (name, version) not in self.codecs:
            self.loads += 1
            begun_s = time.thread_time()
            while time.thread_time() - begun_s < LOAD_S:
                pass
            self.codecs[name, version] = BatchCodec(examples.readings())
        return super().codec(name, version)


class SlowWriter(FakeWriter):
    """A writer that takes its time, and counts the rejected records. done: set after the last message."""

    def __init__(self, messages: int) -> None:
        super().__init__()
        self.rejected = 0
        self.done = threading.Event()
        self._left = messages

    def write(self, chunk: DecodableChunk, blocked: Collection[str] = ()) -> Applied:
        prepared = chunk.prepared
        threading.Event().wait(WRITE_S)
        self.rejected += sum(len(group.rows.rejections) for group in prepared.groups)
        self._left -= len(prepared.chunk.items)
        if not self._left:
            self.done.set()
        jobs = {item.message.spec.key for item in prepared.chunk.items}
        return Applied({job: JobCounts(rejected=RECORDS) for job in jobs}, WRITE_S, WRITE_S)


def rejected_batch(offset: int, records: int) -> Fetched:
    """A batch whose records are all malformed."""
    message = seal(0, offset)
    assert message.message is not None
    spec = replace(message.message.spec, dataset="sensor_readings")
    batch = replace(message.message, kind=Kind.BATCH, spec=spec, records=records)
    return replace(message, message=batch, payload=examples.batch_of([b"\x0a\x05S"] * records))


def test_the_poll_loop_works_for_less_than_100_ms_between_two_polls() -> None:
    log, registry, writer, stopping = TimedLog(), SlowRegistry(), SlowWriter(MESSAGES), threading.Event()
    settings = load(WorkerSettings)
    ports = replace(Fakes(log=log, registry=registry).ports(), writer=writer, clock=time.monotonic)
    poller = Poller(
        settings, ports, WriterThread(writer, registry, ports.dead_letters, stopping), FakeExpress(), stopping
    )
    records = settings.chunk_rows_max // 10
    log.pending += [rejected_batch(0, RECORDS), *(rejected_batch(number, records) for number in range(1, MESSAGES))]
    polling = threading.Thread(target=poller.run)
    polling.start()
    try:
        assert writer.done.wait(60)
    finally:
        stopping.set()
        polling.join(30)
    assert registry.loads == 1
    assert writer.rejected == RECORDS + (MESSAGES - 1) * records
    assert max(log.work_s) < WORK_S_MAX
