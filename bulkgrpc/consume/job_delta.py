"""What a chunk did for a job, while it is written: counted up, then told to the job's row."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from bulkgrpc.consume.plan import Fate
from bulkgrpc.datasets.rows import RejectedRecord
from bulkgrpc.model import JobCounts, Message
from bulkgrpc.rejections import Rejection, RejectionCode


@dataclass(slots=True)
class JobDelta:
    """Counts of records, the rejections, and how the job ends, if it does.

    accepted = written + duplicate + rejected + expired + what an atomic job goes on holding. sealed_at: when a seal
    that the chunk applied was sent. unsealed: whether another lane's seal is still to come.
    """

    accepted: int = 0
    written: int = 0
    duplicate: int = 0
    expired: int = 0
    rejections: list[Rejection] = field(default_factory=list)
    sealed_at: datetime | None = None
    unsealed: bool = False
    failure: str = ""

    @property
    def ends_at(self) -> datetime | None:
        """When the job's last seal was sent, if the chunk applied it."""
        return None if self.unsealed else self.sealed_at

    @property
    def rejected(self) -> int:
        """How many records were rejected."""
        return len(self.rejections)

    @property
    def counts(self) -> JobCounts:
        """The counts alone."""
        return JobCounts(self.accepted, self.written, self.duplicate, self.rejected, self.expired)

    @property
    def nothing(self) -> bool:
        """Whether the chunk did nothing for the job."""
        return not (self.accepted or self.written or self.duplicate or self.expired or self.sealed_at or self.failure)

    def reject(self, message: Message, record: RejectedRecord) -> None:
        """Report a record of a batch."""
        self.rejections.append(
            Rejection(
                message.spec.key.job_id,
                message.sequence,
                record.record_index,
                record.code,
                record.field,
                record.reason,
                record.record,
            )
        )

    def settle(self) -> None:
        """Of a job that is not atomic: what is none of the others was there already."""
        self.duplicate = self.accepted - self.written - self.rejected - self.expired

    def waiting(self, staged: int) -> int:
        """Of an atomic job: how many records it holds, `staged` of them from before this chunk."""
        return staged + self.accepted - self.rejected - self.expired

    def release(self, staged: int, written: int) -> None:
        """Of an atomic job that ends: tell what became of what it staged, `staged` from before this chunk."""
        waiting = self.waiting(staged)
        if self.failure:
            self.expired += waiting
        else:
            self.written, self.duplicate = written, waiting - written


def failure(atomic: bool, rejections_max: int, rejected: int, expired: int) -> str:
    """Return why a job with so many records rejected and expired fails before its end; empty if it does not."""
    if atomic and rejected + expired:
        return f"the job is atomic and {rejected + expired} of its records could not be applied"
    if rejections_max and rejected > rejections_max:
        return f"{rejected} records were rejected, more than the job's rejections_max of {rejections_max}"
    return ""


def why_refused(message: Message, fate: Fate) -> tuple[RejectionCode, str]:
    """Return code and reason for the records of a batch that cannot be written any more."""
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
    if fate is Fate.CONFLICT:
        return RejectionCode.BATCH_CONFLICT, f"another batch with sequence {message.sequence} was applied before"
    return RejectionCode.AFTER_SEAL, f"batch {message.sequence} came after the job's seal"
