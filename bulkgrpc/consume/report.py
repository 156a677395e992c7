"""The rejection report of a chunk: attaches batch, job and bytes to rejected records. The one place that does."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bulkgrpc.consume.assembly import Received
from bulkgrpc.datasets.records import records_of
from bulkgrpc.rejections import Rejections


def report(items: Sequence[Received], rejections: Rejections, create_days: Mapping[uuid.UUID, date]) -> pa.RecordBatch:
    """Return the rows of `bulk.rejections` for rejected records.

    items: the chunk's messages; the payload of a rejection is an index into them. create_days: of each job, the day
    that its rows are kept under. Each payload with a rejected record is sliced once, natively; no Python per record.
    """
    numbers, place = np.unique(rejections.payload, return_inverse=True)
    batches = [items[number] for number in numbers.tolist()]
    counts = np.array([batch.message.records for batch in batches], np.int64)
    starts = np.cumsum(counts) - counts
    records = records_of([batch.payload for batch in batches], counts)
    jobs = [batch.message.spec.key.job_id for batch in batches]
    of_batch = pa.array(place)
    # PostgreSQL's text takes no U+0000, and a reason may quote the record.
    reasons = pc.replace_substring(rejections.causes.column("reason"), "\0", "\\0")
    return pa.record_batch(
        {
            "create_day": pa.array([create_days[job] for job in jobs], pa.date32()).take(of_batch),
            "job_id": pa.array([job.bytes for job in jobs], pa.binary(16)).take(of_batch),
            "sequence": pa.array([batch.message.sequence for batch in batches], pa.int64()).take(of_batch),
            "record_index": pa.array(rejections.record_index),
            "code": rejections.causes.column("code"),
            "field": rejections.causes.column("field"),
            "reason": reasons,
            "record": records.take(pa.array(starts[place] + rejections.record_index)),
        }
    )
