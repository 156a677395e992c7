"""The limits that must fit each other, with their relations asserted where a process starts.

Sizes in bytes, times in seconds. What an operator may set is in `settings`; what only this code may set stands here.
"""

from __future__ import annotations

BATCH_BYTES_MAX = 1024 * 1024
"""A serialized RecordBatch. 200 streams with one such batch each in memory stay under 300 MB."""
BATCH_RECORDS_MAX = 50_000
MESSAGE_OVERHEAD_BYTES = 16 * 1024
"""What the envelope of a stream message and the headers of a Kafka message may add to a batch."""
KAFKA_MESSAGE_BYTES_MAX = 4 * 1024 * 1024
"""What the topic takes; above the largest batch that a server may be set to."""

STREAMS_MAX = 200
LABELS_MAX = 16
LABEL_KEY_CHARS_MAX = 63
LABEL_VALUE_CHARS_MAX = 255
SESSION_ID_CHARS_MAX = 64
TIME_TO_LIVE_S_MIN = 1.0
TIME_TO_LIVE_S_MAX = 366 * 86_400.0
"""Of a batch. Kafka and the job rows forget long before; above it the time of expiry may be no date any more."""
DEDUPE_WINDOW_S_MIN = 1.0
DEDUPE_WINDOW_S_MAX = 31 * 86_400.0
"""For which records are remembered: PostgreSQL keeps up to two windows' hashes, some 100 bytes a record."""
PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 1000
KEY_COLUMNS_MAX = 8
COLUMNS_MAX = 400
HASH_PARTITIONS_MAX = 256
TIME_PARTITIONS_MAX = 1000
"""Of a table: rows of still other times stay in its default partition, as every plan looks through the partitions."""
LANES_MAX = 16

MAX_POLL_INTERVAL_S = 300.0
STATEMENT_TIMEOUT_S = 60.0
"""One statement of a chunk's transaction."""
IDLE_IN_TRANSACTION_S = 10.0
"""A transaction whose worker says nothing more: a frozen one must not hold its partitions' rows for longer."""
TCP_USER_TIMEOUT_S = 10.0
"""Data sent and not acknowledged by the other machine."""
CHUNK_TRANSACTION_S_MAX = 120.0
"""A chunk's whole transaction; the server side ends it after that."""
DELIVERY_TIMEOUT_S = 20.0
"""From produce to the broker's acknowledgement; after that the stream ends with UNAVAILABLE."""
SEAL_TIMEOUT_S = 25.0
"""From the end of the stream to the answer. A client's own deadline must be longer."""
SUBMISSION_DEADLINE_S = 30.0


class LimitError(ValueError):
    """Two limits do not fit each other."""


def check_limits(batch_bytes_max: int = BATCH_BYTES_MAX, chunk_bytes_max: int | None = None) -> None:
    """Check that the limits fit each other.

    Raises LimitError with the relation that is broken.
    """
    relations = {
        f"batch_bytes_max ({batch_bytes_max}) + overhead must be under Kafka's {KAFKA_MESSAGE_BYTES_MAX} bytes": (
            batch_bytes_max + MESSAGE_OVERHEAD_BYTES < KAFKA_MESSAGE_BYTES_MAX
        ),
        f"batch_bytes_max ({batch_bytes_max}) must not be over chunk_bytes_max ({chunk_bytes_max})": (
            chunk_bytes_max is None or batch_bytes_max <= chunk_bytes_max
        ),
        "a chunk's transaction must end before max.poll.interval": CHUNK_TRANSACTION_S_MAX < MAX_POLL_INTERVAL_S,
        "a statement must end before its transaction": STATEMENT_TIMEOUT_S < CHUNK_TRANSACTION_S_MAX,
        "delivery must end before the seal's answer": DELIVERY_TIMEOUT_S < SEAL_TIMEOUT_S,
        "the seal's answer must come before the client's deadline": SEAL_TIMEOUT_S < SUBMISSION_DEADLINE_S,
    }
    for relation, holds in relations.items():
        if not holds:
            raise LimitError(relation)
