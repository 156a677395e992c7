"""The drain thread: applies parked messages, tries blocked datasets again, and isolates what cannot be written."""

from __future__ import annotations

import threading

import structlog

from bulkgrpc import metrics
from bulkgrpc.consume.failures import BlockCause, Consequence, classify
from bulkgrpc.consume.ports import ParkedMessages, SliceFailed, StoreError

log = structlog.get_logger()

IDLE_S = 1.0
"""How often to look for parked messages while there are none, and for blocked datasets whose trial is due."""
BUSY_S = 0.05
"""How long to wait after a round that found messages but could apply none: another worker may be at them."""
SLICE_MESSAGES = 256
FAILED_WAIT_S = 1.0


class DrainThread:
    """Start once; it ends when `stopping` is set. It is on no other message's way: it has a connection of its own."""

    def __init__(self, parked: ParkedMessages, stopping: threading.Event) -> None:
        self._parked = parked
        self._stopping = stopping
        self._wake = threading.Event()
        self._slice: dict[int, int] = {}  # messages at once, of partitions where a slice failed
        self._thread = threading.Thread(target=self._run, name="drain", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Look for parked messages now."""
        self._wake.set()

    def join(self, timeout_s: float) -> None:
        """Wait until the thread has ended, `timeout_s` at most."""
        self._wake.set()
        self._thread.join(timeout_s)

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
        """Drain each partition by a slice, and try a dataset whose trial is due. Returns how long to wait, seconds."""
        self._parked.retry_jobs()
        self._try_dataset()
        applied = 0
        partitions = self._parked.partitions()
        for partition in partitions:
            if self._stopping.is_set():
                return 0.0
            applied += self._drain(partition)
        for dataset in self._parked.end_isolation():
            log.info("dataset_unblocked", dataset=dataset)
        if applied:
            return 0.0
        return BUSY_S if partitions else IDLE_S

    def _drain(self, partition: int) -> int:
        messages_max = self._slice.get(partition, SLICE_MESSAGES)
        try:
            applied = self._parked.drain(partition, messages_max)
        except SliceFailed as error:
            self._on_failed(partition, error)
            return 1
        metrics.messages_drained.add(applied)
        if partition in self._slice and applied:
            self._slice[partition] = min(messages_max * 2, SLICE_MESSAGES)
        return applied

    def _on_failed(self, partition: int, error: SliceFailed) -> None:
        """Cut the slice down to the message at fault; then block its dataset or its job."""
        consequence = classify(error.failure)
        if consequence is Consequence.RETRY:
            raise StoreError(str(error))
        if consequence is Consequence.BLOCK_DATASET and error.failure.dataset:
            self._block(error.failure.dataset, error)
        elif error.messages > 1:
            self._slice[partition] = max(error.messages // 8, 1)
        else:
            self._slice[partition] = 1
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
        isolating = classify(error.failure) is Consequence.DEFER_JOB
        self._parked.block(dataset, BlockCause.ISOLATING if isolating else BlockCause.TABLE, error.failure)
        log.warning("dataset_still_blocked", dataset=dataset, sqlstate=error.failure.sqlstate, reason=str(error))
