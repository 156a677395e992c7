"""What a chunk does to a job: counts, seal, failure reason, and the job's next state. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from bulkgrpc.consume.plan import Fate
from bulkgrpc.model import JobCounts, JobState, Message, final_state
from bulkgrpc.rejections import RejectionCode


@dataclass(slots=True)
class JobDelta:
    """Counts of records that a chunk, or a task, adds to a job, and how the job ends, if it does.

    accepted = written + duplicate + rejected + expired + skipped + the records that an atomic job keeps staged.
    sealed_at: when the seal that the chunk applies was sent. unsealed: whether a lane is not sealed after the chunk.
    failure_reason: why the job fails here; only set for a job that has not ended. lost: whether that is because Kafka
    lost batches of it. late_batches: reported as late; no count has their records. task_rows: staged rows of an atomic
    job whose last seal the chunk applies, which are left to a task (`bulkgrpc.consume.apply_tasks`).
    """

    accepted: int = 0
    written: int = 0
    duplicate: int = 0
    rejected: int = 0
    expired: int = 0
    skipped: int = 0
    sealed_at: datetime | None = None
    unsealed: bool = False
    failure_reason: str = ""
    lost: bool = False
    late_batches: int = 0
    task_rows: int = 0

    @property
    def ends_at(self) -> datetime | None:
        """When the job's last seal was sent, if the chunk applies it."""
        return None if self.unsealed else self.sealed_at

    @property
    def counts(self) -> JobCounts:
        """The counts alone."""
        return JobCounts(self.accepted, self.written, self.duplicate, self.rejected, self.expired, self.skipped)

    @property
    def is_empty(self) -> bool:
        """Whether the chunk does nothing to the job."""
        counted = self.accepted or self.written or self.duplicate or self.expired
        return not (counted or self.sealed_at or self.failure_reason)

    def count_duplicates(self) -> None:
        """Of a job that is not atomic: count as duplicates the records that are none of the others."""
        self.duplicate = self.accepted - self.written - self.rejected - self.expired - self.skipped

    def leave_staged(self, staged: int) -> None:
        """Of an atomic job: expire what is staged if it fails here; leave it to a task if the last seal is applied.

        staged: records that were staged before the chunk.
        """
        if self.failure_reason:
            self.end_staging(staged, 0, 0)
        elif self.ends_at is not None:
            self.task_rows = self._staged_after(staged)

    def end_staging(self, staged: int, written: int, skipped: int) -> None:
        """Of an atomic job that ends: count what was staged, before the chunk or by it. skipped: by a trigger."""
        waiting = self._staged_after(staged)
        if self.failure_reason:
            self.expired += waiting
        else:
            self.written, self.skipped, self.duplicate = written, skipped, waiting - written - skipped

    def _staged_after(self, staged: int) -> int:
        return staged + self.accepted - self.rejected - self.expired

    def next_state(self, state: JobState, before: JobCounts) -> JobState | None:
        """Return the state of the job after the chunk, None if the chunk does not change it.

        state, before: of the job's locked row.

        | the job                            | the chunk                    | state               |
        |------------------------------------|------------------------------|---------------------|
        | has ended                          | anything                     | unchanged           |
        | has not ended                      | has a failure reason         | FAILED              |
        | has not ended                      | leaves staged rows to a task | SEALED              |
        | has not ended                      | applies its last seal        | `final_state`       |
        | has not ended                      | anything else                | unchanged           |
        """
        if state.ended:
            return None
        if self.failure_reason:
            return JobState.FAILED
        if self.task_rows:
            return JobState.SEALED
        return final_state(before + self.counts) if self.ends_at is not None else None


def failure_reason(atomic: bool, rejections_max: int, rejected: int, expired: int) -> str:
    """Return why a job with so many records rejected and expired fails before its end; empty if it does not."""
    if atomic and rejected + expired:
        return f"the job is atomic and {rejected + expired} of its records could not be applied"
    if rejections_max and rejected > rejections_max:
        return f"{rejected} records were rejected, more than the job's rejections_max of {rejections_max}"
    return ""


def why_rejected(message: Message, fate: Fate) -> tuple[RejectionCode, str]:
    """Return code and reason for the records of a batch that is rejected whole, or reported as late."""
    spec = message.spec
    if fate is Fate.DELETED:
        return (
            RejectionCode.DATASET_DELETED,
            f"dataset {spec.dataset} was deleted, version {spec.dataset_version} with it, before the batch was "
            "applied: register it again and submit the record in another job",
        )
    if fate is Fate.OTHER_VERSION:
        return (
            RejectionCode.VERSION_CONFLICT,
            f"batch {message.sequence} is of version {spec.dataset_version} of dataset {spec.dataset}, and its job is "
            "atomic and was opened with another: submit all of it again as another job",
        )
    if fate is Fate.DISCARDED_JOB:
        return (
            RejectionCode.JOB_DISCARDED,
            f"the job was discarded before batch {message.sequence} was applied: the job's failure_reason says why",
        )
    if fate in (Fate.CONFLICT, Fate.LATE_CONFLICT):
        return RejectionCode.BATCH_CONFLICT, f"another batch with sequence {message.sequence} was applied before"
    return RejectionCode.AFTER_SEAL, f"batch {message.sequence} arrived after the job's seal"
