"""What Redis knows of a job, and how that and a job's row make one picture. Pure."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime

from bulkgrpc.model import Job, JobCounts, JobKey, JobOptions, JobSpec, JobState, from_us, to_us

DIGESTS_MAX = 1024
"""Batches of a job whose digests are kept, the last ones: what a client may still hold unacknowledged."""
DIGEST_CHARS = 32
"""A digest in hexadecimal, so that Redis' answers are text."""


@dataclass(frozen=True, slots=True)
class LiveJob:
    """A job as the servers know it: ahead of its row, because workers have not applied all of it yet.

    partitions: of each lane. next_sequence: every batch before it is on Kafka, and there, in its lane's order, if it is
    not applied yet. accepted: records of those batches. state: OPEN, SEALED, or CANCELLED. recent: digests of the
    batches right before `next_sequence`; only written, never read back with the job.
    """

    spec: JobSpec
    partitions: tuple[int, ...]
    next_sequence: int
    accepted: int
    state: JobState
    create_time: datetime
    seal_time: datetime | None = None
    recent: tuple[bytes, ...] = ()

    def after(self, earlier: LiveJob) -> LiveJob:
        """Return this with the digests of `earlier` too, as far as they join on; at most DIGESTS_MAX."""
        if self.next_sequence - len(self.recent) != earlier.next_sequence:
            return self
        return replace(self, recent=(earlier.recent + self.recent)[-DIGESTS_MAX:])

    def as_job(self) -> Job:
        """Return the job as if nothing of it were applied."""
        counts = JobCounts(accepted=self.accepted)
        return Job(
            self.spec, self.partitions, self.state, counts, self.next_sequence, self.create_time, self.seal_time, None
        )


def overlay(job: Job, live: LiveJob | None) -> Job:
    """Return a job's row brought forward by what Redis knows of it.

    The lanes are those of the stream that came as far as Redis says: what it sent may not be applied yet, and what
    comes next must not overtake it. A row may say otherwise if that stream could not read it. The row of an ended job
    stands as it is, and only the row says that a job has ended.
    """
    if live is None or job.state.ended or live.state.ended:
        return job
    ahead = live.next_sequence > job.next_sequence
    return replace(
        job,
        partitions=live.partitions,
        state=max(job.state, live.state),
        counts=replace(job.counts, accepted=live.accepted) if ahead else job.counts,
        next_sequence=max(job.next_sequence, live.next_sequence),
        seal_time=job.seal_time or live.seal_time,
    )


def to_fields(live: LiveJob) -> dict[str, str]:
    """Return the fields of a job's hash that never change once set."""
    spec = live.spec
    return {
        "spec": json.dumps(
            {
                "tenant": spec.key.tenant,
                "job_id": str(spec.key.job_id),
                "idempotency_key": spec.idempotency_key,
                "dataset": spec.dataset,
                "dataset_version": spec.dataset_version,
                "labels": spec.labels,
                "options": asdict(spec.options),
            }
        ),
        "create_time_us": str(to_us(live.create_time)),
    }


def from_fields(fields: Mapping[str, str]) -> LiveJob | None:
    """Read a job's hash; None if it is not there or not whole, which is the same to everyone."""
    try:
        spec = json.loads(fields["spec"])
        seal_time_us = int(fields.get("seal_time_us", "0"))
        return LiveJob(
            spec=JobSpec(
                JobKey(spec["tenant"], uuid.UUID(spec["job_id"])),
                spec["idempotency_key"],
                spec["dataset"],
                spec["dataset_version"],
                spec["labels"],
                JobOptions(**spec["options"]),
            ),
            partitions=tuple(int(text) for text in fields["partitions"].split(",")),
            next_sequence=int(fields["next_sequence"]),
            accepted=int(fields["accepted"]),
            state=JobState(int(fields["state"])),
            create_time=from_us(int(fields["create_time_us"])),
            seal_time=from_us(seal_time_us) if seal_time_us else None,
        )
    except (KeyError, ValueError, TypeError):
        return None


def from_ring(next_sequence: int, ring: str) -> dict[int, bytes]:
    """Read the digests of a job's last batches by sequence.

    ring: DIGESTS_MAX places of DIGEST_CHARS, that of a batch at `sequence % DIGESTS_MAX`; U+0000 where there is none.
    """
    found: dict[int, bytes] = {}
    for sequence in range(max(0, next_sequence - DIGESTS_MAX), next_sequence):
        start = sequence % DIGESTS_MAX * DIGEST_CHARS
        text = ring[start : start + DIGEST_CHARS]
        if len(text) == DIGEST_CHARS and "\0" not in text:
            found[sequence] = bytes.fromhex(text)
    return found
