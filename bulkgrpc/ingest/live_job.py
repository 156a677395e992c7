"""The progress of a job as servers record it: ahead of the job's row, because workers apply batches later. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from bulkgrpc.limits import RECENT_DIGESTS_MAX
from bulkgrpc.model import Job, JobCounts, JobSpec, JobState


@dataclass(frozen=True, slots=True)
class LiveJob:
    """A job as the servers know it.

    partitions: one per lane. next_sequence: every batch before it is in the record log, in the order of its lane.
    accepted: records of those batches. state: OPEN, SEALED or CANCELLED. recent_digests: digests of the batches right
    before `next_sequence`; they are written, and never read back with the job. released_epoch: lease epoch of the last
    stream that is known to have ended, 0 if none is; it is read, and written with the release of its lease only.
    attempt: the job's; what is known of an earlier one is forgotten.
    """

    spec: JobSpec
    partitions: tuple[int, ...]
    next_sequence: int
    accepted: int
    state: JobState
    create_time: datetime
    seal_time: datetime | None = None
    recent_digests: tuple[bytes, ...] = ()
    released_epoch: int = 0
    attempt: int = 0

    @classmethod
    def of(cls, job: Job) -> LiveJob:
        """Return the progress of a job as its view shows it."""
        return cls(
            job.spec,
            job.partitions,
            job.next_sequence,
            job.counts.accepted,
            job.state,
            job.create_time,
            job.seal_time,
            attempt=job.attempt,
        )

    def after(self, earlier: LiveJob) -> LiveJob:
        """Return this with the digests of `earlier` in front, if they are contiguous; at most RECENT_DIGESTS_MAX."""
        first_sequence = self.next_sequence - len(self.recent_digests)
        if (self.attempt, first_sequence) != (earlier.attempt, earlier.next_sequence):
            return self
        return replace(self, recent_digests=(earlier.recent_digests + self.recent_digests)[-RECENT_DIGESTS_MAX:])

    def as_job(self) -> Job:
        """Return the job as if none of it were applied."""
        return Job(
            self.spec,
            self.partitions,
            self.state,
            JobCounts(accepted=self.accepted),
            self.next_sequence,
            self.create_time,
            self.seal_time,
            attempt=self.attempt,
        )
