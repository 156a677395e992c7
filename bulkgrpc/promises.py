"""What the service promises, each with an id that tests, fault runs and documents cite. Imports nothing of ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise.

    name: its id, stable. sentence: what is promised. kept_in: the code that keeps it. falsified_by: what must never be
    seen; a checker that sees it names the promise.
    """

    name: str
    sentence: str
    kept_in: str
    falsified_by: str


P1: Final = Promise(
    "P1",
    "A record of an acknowledged batch is in the table, or in its job's report, and there once.",
    "server/deliveries.py (acknowledges what Kafka stored), store/transaction.py (rows, counts and offsets at once)",
    "a record of an acknowledged batch that is in neither, or is there twice",
)
P2: Final = Promise(
    "P2",
    "Sending a batch again changes nothing, however often, to whichever server, after any crash, with Redis empty: one "
    "whose outcome its client does not know is there once or not at all.",
    "store/chunk.py (plan_lanes), model.may_apply_batch, store/ledger.py (lanes and digests)",
    "a batch that is there twice, or in part, or that nobody sent",
)
P3: Final = Promise(
    "P3",
    "What a job reports as written is in the table at that moment, durably; an end, once told, is never taken back.",
    "store/transaction.py (one transaction), store/connection.py (synchronous_commit)",
    "a count that differs from the rows in one snapshot; an ended job that is open later; a count that sinks",
)
P4: Final = Promise(
    "P4",
    "The batches of a lane are applied in their order and without holes. A job has one lane unless its dataset asks "
    "for more.",
    "model.may_apply_batch, server/messages.py (check_sequence)",
    "a batch that is there while one before it in its lane is not",
)
P5: Final = Promise(
    "P5",
    "A worker that lost its partition writes nothing to it any more, however late it wakes.",
    "store/ledger.py (lock_spans, acquire), model.may_apply_span",
    "a partition's offset in the ledger that goes back, or is left out, or moves under an older epoch",
)
P6: Final = Promise(
    "P6",
    "A bad record harms no neighbour: it is reported with its place and reason, the others are written.",
    "datasets/rows.py, store/writers/ignore.py, store/rejections.py",
    "a rejected record without its report, or a good one of the same batch that is missing",
)
P7: Final = Promise(
    "P7",
    "Too much is refused, with a time to come back, before memory runs out.",
    "server/gate.py, server/budget.py, workers/writer.py (CHUNKS_WAITING_MAX)",
    "a process over its bound of memory, a refusal without its code",
)
P8: Final = Promise(
    "P8",
    "After a fault is over, the lag returns to zero and every sealed job ends, without a human.",
    "workers/poller.py, workers/writer.py, client/submission.py (try again, with back-off)",
    "a deadline that passes before",
)
P9: Final = Promise(
    "P9",
    "Where Kafka lost what the ledger needs next, the worker stops and says so; it never goes on behind the hole.",
    "backbone/consumer.py (OffsetLost, auto.offset.reset=error)",
    "an acknowledged batch that is missing while no worker stopped for it",
)

PROMISES: Final = (P1, P2, P3, P4, P5, P6, P7, P8, P9)
