"""What the service promises, each with an ID that tests, fault runs and documents cite. Imports nothing of bulkgrpc."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise.

    name: its stable ID. sentence: what is promised. kept_in: the code that keeps it. falsified_by: what must never be
    observed; the checker reports it under the promise's ID.
    """

    name: str
    sentence: str
    kept_in: str
    falsified_by: str


P1: Final = Promise(
    "P1",
    "A record of an acknowledged batch is in the table or in its job's rejection report, exactly once.",
    "ingest/deliveries.py (acknowledges what Kafka stored), ingest/lease.py (by the job's last stream only), "
    "postgres/transaction.py (rows, counts and offsets at once)",
    "a record of an acknowledged batch that is in neither, or is in one of them twice",
)
P2: Final = Promise(
    "P2",
    "Resending a batch changes nothing, however often, to any server, after any crash, with Redis empty. A batch whose "
    "outcome its client does not know is applied once or not at all.",
    "consume/plan.py (plan_lanes), positions.may_apply_batch, postgres/ledger.py (lanes and digests), "
    "postgres/apply_task.py (rows and end of an atomic job at once)",
    "a batch that is applied twice, or in part, or that no client sent",
)
P3: Final = Promise(
    "P3",
    "What a job reports as written is durably in the table at that moment; a reported end is final: neither the state "
    "nor a count of a job that ended by its seal changes. Only a job that lost batches in Kafka is opened again.",
    "postgres/transaction.py (one transaction), postgres/connection.py (synchronous_commit), consume/plan.py (late "
    "batches)",
    "a count that differs from the rows in one snapshot; an ended job that reports another state or count later",
)
P4: Final = Promise(
    "P4",
    "The batches of a lane are applied in order and without gaps. A job has one lane unless its dataset has more.",
    "positions.may_apply_batch, ingest/messages.py (check_sequence)",
    "a batch that is applied while one before it in its lane is not",
)
P5: Final = Promise(
    "P5",
    "A worker that lost its partition writes nothing of it, however late it resumes.",
    "postgres/ledger.py (check_spans, acquire), positions.may_apply_span",
    "a partition's offset in the ledger that decreases, skips messages, or advances under an older epoch",
)
P6: Final = Promise(
    "P6",
    "A rejected record harms no neighbor: it is reported with its position and reason, and the others are written.",
    "datasets/rows.py, postgres/writers/, postgres/rejections.py",
    "a rejected record without a report, or a valid one of the same batch that is missing",
)
P7: Final = Promise(
    "P7",
    "Load above the limits is refused, with a time to retry, before memory is exhausted.",
    "ingest/admission.py, ingest/byte_budget.py, workers/writer.py (CHUNKS_QUEUED_MAX)",
    "a process above its memory bound, a refusal without its code",
)
P8: Final = Promise(
    "P8",
    "After a fault ends, the lag returns to zero and every sealed job ends, without an operator.",
    "workers/partitions.py, workers/writer.py, client/submission.py (retry with back-off)",
    "a deadline that passes first",
)
P9: Final = Promise(
    "P9",
    "If Kafka lost the offset that the ledger needs next, the partition stops and says so; it never skips the gap.",
    "kafka/consumer.py (auto.offset.reset=error), consume/log_identity.py (examine), consume/gaps.py",
    "an acknowledged batch that is missing while its partition did not stop",
)

P10: Final = Promise(
    "P10",
    "What is done to a table, a rule or a batch ends no process, and only jobs of that dataset, or that job, wait for "
    "it.",
    "consume/failures.py (classify), postgres/parked.py, postgres/rows_time.py, workers/drain.py",
    "a process that ends; a job of another dataset that ends more than 2 s later than without the fault",
)

P11: Final = Promise(
    "P11",
    "No acknowledged record is lost in silence: a job that lost one in Kafka ends as FAILED and names the batch from "
    "which on it is to be sent again. Submitted again, it continues there, and nothing is written twice.",
    "consume/losses.py, postgres/maintenance.py (expire_abandoned), consume/topic_check.py, ingest/topic_guard.py, "
    "consume/recovery.py, postgres/recovery.py",
    "an acknowledged batch that is missing in a job whose failure reason does not name it",
)

PROMISES: Final = (P1, P2, P3, P4, P5, P6, P7, P8, P9, P10, P11)
