"""The form of a job's progress and digests in Redis: fields of a hash, a ring of digests. Pure."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict

from bulkgrpc.ingest.live_job import LiveJob
from bulkgrpc.limits import RECENT_DIGESTS_MAX
from bulkgrpc.model import JobKey, JobOptions, JobSpec, JobState, from_us, to_us

DIGEST_CHARS = 32
"""A digest in hexadecimal, so that answers of Redis are text."""


def to_fields(live: LiveJob) -> dict[str, str]:
    """Return the fields of a job's hash that never change once they are set."""
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
    """Parse a job's hash; None if it does not exist or is incomplete."""
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
            released_epoch=int(fields.get("released_epoch", "0")),
            attempt=int(fields.get("attempt", "0")),
        )
    except (KeyError, ValueError, TypeError):
        return None


def from_ring(next_sequence: int, ring: str) -> dict[int, bytes]:
    """Parse the digests of a job's last batches, by sequence.

    ring: RECENT_DIGESTS_MAX slots of DIGEST_CHARS; a batch has slot `sequence % RECENT_DIGESTS_MAX`; an empty slot
    contains U+0000.
    """
    found: dict[int, bytes] = {}
    for sequence in range(max(0, next_sequence - RECENT_DIGESTS_MAX), next_sequence):
        start = sequence % RECENT_DIGESTS_MAX * DIGEST_CHARS
        text = ring[start : start + DIGEST_CHARS]
        if len(text) == DIGEST_CHARS and "\0" not in text:
            found[sequence] = bytes.fromhex(text)
    return found
