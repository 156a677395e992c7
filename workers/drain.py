"""The drain thread: applies parked messages, tries blocked datasets again, and isolates what cannot be written."""

from __future__ import annotations

import threading

import structlog

from bulkgrpc import metrics
from bulkgrpc.consume.deferral import QueueKey
from bulkgrpc.consume.failures import BlockCause, Consequence, Where, classify
from bulkgrpc.consume.ports import Pace, ParkedMessages, SliceFailed, StoreError, StoreUnavailable

log = structlog.get_logger()

IDLE_S = 1.0
"""How long to wait at most after a round that applied nothing: blocked datasets whose trial is due are tried then."""
BUSY_S = 0.02
"""How long to wait after the first such round: another worker may be at the queues."""
SLICE_MESSAGES = 256
FAILED_WAIT_S = 1.0


class DrainThread:
    """Start once; it ends when `stopping` is set. It is on no other message's way: it has a connection of its own."""

    def __init__(self, parked: ParkedMessages, stopping: threading.Event) -> None:
        self._parked = parked
        self._stopping = stopping
        self._wake = threading.Event()
        self._slices: dict[QueueKey, int] = {}  # messages at once, of queues with a slice that failed
        self._wait_s = BUSY_S
        self._rounds = 0
        self._thread = threading.Thread(target=self._run, name="drain", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Look for parked messages now."""
        self._wake.set()

    def _run(self) -> None:
        wait_s = 0.0
        while not self._stopping.is_set():
            self._wake.wait(wait_s)
            self._wake.clear()
            if self._stopping.is_set():
                break
            try:
                wait_s = self.round()
            except StoreError as error:
                log.warning("drain_failed", error=str(error))
                self._parked.close()
                wait_s = FAILED_WAIT_S
            except Exception:
                # Any exception: if the thread ended, parked messages would wait for another worker.
                log.exception("drain_failed")
                self._parked.close()
                wait_s = FAILED_WAIT_S
        self._parked.close()

    def round(self) -> float:
        """Drain each queue by a slice, and try a dataset whose trial is due. Returns how long to wait, seconds."""
        self._try_dataset()
        applied = 0
        queues = self._parked.queues()
        # Not always the same one first.
        first = self._rounds % len(queues) if queues else 0
        queues = [*queues[first:], *queues[:first]]
        self._rounds += 1
        self._slices = {queue: self._slices[queue] for queue in queues if queue in self._slices}
        for queue in queues:
            if self._stopping.is_set():
                return 0.0
            try:
                applied += self._drain(queue)
            except StoreUnavailable:
                raise
            except Exception:
                # Any exception: the queues behind this one must not wait for it.
                log.exception("drain_failed", partition=queue.partition, tenant=queue.tenant, dataset=queue.dataset)
                self._parked.close()
        for dataset in self._parked.end_isolation():
            log.info("dataset_unblocked", dataset=dataset)
        self._wait_s = BUSY_S if applied else min(self._wait_s * 2, IDLE_S)
        return 0.0 if applied else self._wait_s

    def _drain(self, queue: QueueKey) -> int:
        """Drain a slice of a queue; return how much was done: messages applied, or a failure that was dealt with."""
        messages_max = self._slices.get(queue, SLICE_MESSAGES)
        pace = Pace.ALONE if messages_max == 1 else Pace.BESIDE if queue in self._slices else Pace.MERGING
        try:
            applied = self._parked.drain(queue, messages_max, pace=pace)
        except SliceFailed as error:
            self._on_failed(queue, error)
            return 1
        metrics.messages_drained.add(applied)
        if queue in self._slices and applied:
            self._slices[queue] = messages_max * 2
            if self._slices[queue] >= SLICE_MESSAGES:
                del self._slices[queue]
        return applied

    def _on_failed(self, queue: QueueKey, error: SliceFailed) -> None:
        """Cut the slice down to the message at fault; then block its dataset or its job."""
        consequence = classify(error.failure)
        if consequence is Consequence.RETRY and error.failure.where is not Where.ROWS:
            raise StoreError(str(error))
        messages = len(error.job_ids)
        if consequence is Consequence.BLOCK_DATASET:
            self._block(queue.dataset, error)
        elif messages > 1 or self._slices.get(queue) != 1:
            # One message alone gets the longest time for its rows, also if it was alone by chance.
            self._slices[queue] = max(messages // 8, 1)
        else:
            for job_id in error.job_ids:
                self._parked.block_job(job_id, error.failure)
                metrics.jobs_blocked.add(1)
                log.error("job_blocked", job_id=str(job_id), sqlstate=error.failure.sqlstate, reason=str(error))

    def _try_dataset(self) -> None:
        dataset = self._parked.claim_trial()
        if dataset is None:
            return
        try:
            if self._parked.try_dataset(dataset):
                log.info("dataset_unblocked", dataset=dataset)
        except SliceFailed as error:
            if classify(error.failure) is Consequence.RETRY:
                raise StoreError(str(error)) from error
            self._block(dataset, error)

    def _block(self, dataset: str, error: SliceFailed) -> None:
        isolating = classify(error.failure) in (Consequence.DEFER_JOB, Consequence.STOP_PARTITION)
        self._parked.block(dataset, BlockCause.ISOLATING if isolating else BlockCause.TABLE, error.failure)
        log.warning("dataset_still_blocked", dataset=dataset, sqlstate=error.failure.sqlstate, reason=str(error))
