"""Limits that depend on each other. `check_limits` checks their relations when a process starts.

Sizes in bytes, times in seconds. These are constants; what an operator can configure is in `settings`.
"""

from __future__ import annotations

BATCH_BYTES_MAX = 1024 * 1024
"""A serialized RecordBatch. 200 streams with one such batch each in memory need less than 300 MB."""
BATCH_RECORDS_MAX = 50_000
MESSAGE_OVERHEAD_BYTES = 16 * 1024
"""What the envelope of a stream message, or the headers of a Kafka message, may add to a batch."""
KAFKA_MESSAGE_BYTES_MAX = 4 * 1024 * 1024
"""The records topic's max.message.bytes; more than the largest batch that a server can be configured to accept."""

STREAMS_MAX = 200
LABELS_MAX = 16
LABEL_KEY_CHARS_MAX = 63
LABEL_VALUE_CHARS_MAX = 255
SESSION_ID_CHARS_MAX = 64
RECENT_DIGESTS_MAX = 1024
"""Digests of a job's last batches that Redis keeps: as many batches as a client may hold unacknowledged."""
LEASE_TTL_S = 10
"""A job's lease, without a renewal."""
REJECTIONS_PAGE_BYTES_MAX = 2 * 1024 * 1024
"""Bytes of records after which a page of rejections ends: with a last record of 1 MiB it fits gRPC's usual 4 MiB."""
TIME_TO_LIVE_S_MIN = 1.0
TIME_TO_LIVE_S_MAX = 366 * 86_400.0
"""Of a batch. Kafka and the job rows are deleted long before; a longer one may expire outside the range of dates."""
DEDUPE_WINDOW_S_MIN = 1.0
DEDUPE_WINDOW_S_MAX = 31 * 86_400.0
"""How long hashes of records are kept: PostgreSQL stores up to two windows, about 100 bytes per record."""
PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 1000
KEY_COLUMNS_MAX = 8
COLUMNS_MAX = 400
HASH_PARTITIONS_MAX = 256
TIME_PARTITIONS_MAX = 1000
"""Per table; rows of further periods stay in the default partition, because a query plan visits every partition."""
LANES_MAX = 16

MAX_POLL_INTERVAL_S = 300.0
ROWS_TIMEOUT_S = 1.5
"""Statements that write a dataset's rows on the main path: what takes longer is parked, and applied beside it."""
STATEMENT_TIMEOUT_S = 60.0
"""PostgreSQL's statement_timeout: one statement of a chunk's transaction."""
IDLE_IN_TRANSACTION_S = 10.0
"""PostgreSQL's idle_in_transaction_session_timeout: how long a frozen worker can lock its partitions' rows."""
TCP_USER_TIMEOUT_S = 10.0
"""How long sent data may stay unacknowledged by the other machine."""
CHUNK_TRANSACTION_S_MAX = 120.0
"""PostgreSQL's transaction_timeout: a chunk's whole transaction."""
DELIVERY_TIMEOUT_S = 20.0
"""From produce to Kafka's acknowledgement; after it the stream ends with UNAVAILABLE."""
SEAL_TIMEOUT_S = 25.0
"""From the end of the stream to the server's response. A client's own deadline must be longer."""
SUBMISSION_DEADLINE_S = 30.0


class LimitError(ValueError):
    """Two limits contradict each other."""


def check_limits(batch_bytes_max: int = BATCH_BYTES_MAX, chunk_bytes_max: int | None = None) -> None:
    """Check the relations between the limits. Raises LimitError, which names the relation that does not hold."""
    relations = {
        f"batch_bytes_max ({batch_bytes_max}) + overhead must be under Kafka's {KAFKA_MESSAGE_BYTES_MAX} bytes": (
            batch_bytes_max + MESSAGE_OVERHEAD_BYTES < KAFKA_MESSAGE_BYTES_MAX
        ),
        f"batch_bytes_max ({batch_bytes_max}) must not be over chunk_bytes_max ({chunk_bytes_max})": (
            chunk_bytes_max is None or batch_bytes_max <= chunk_bytes_max
        ),
        "a chunk's transaction must end before max.poll.interval": CHUNK_TRANSACTION_S_MAX < MAX_POLL_INTERVAL_S,
        "rows that are alone must have longer than those on the main path": ROWS_TIMEOUT_S < STATEMENT_TIMEOUT_S,
        "a statement must end before its transaction": STATEMENT_TIMEOUT_S < CHUNK_TRANSACTION_S_MAX,
        "delivery must end before the seal's answer": DELIVERY_TIMEOUT_S < SEAL_TIMEOUT_S,
        "the seal's answer must come before the client's deadline": SEAL_TIMEOUT_S < SUBMISSION_DEADLINE_S,
    }
    for relation, holds in relations.items():
        if not holds:
            raise LimitError(relation)
