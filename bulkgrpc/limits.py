"""Limits that depend on each other, and their relations, which `check_limits` checks when a process starts.

Together the relations say: what a server acknowledges, a worker can read and write. Sizes in bytes, times in seconds.
These are constants; what an operator can configure is in `settings`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

BATCH_BYTES_MAX = 1024 * 1024
"""A serialized RecordBatch. 200 streams with one such batch each in memory need less than 300 MB."""
BATCH_RECORDS_MAX = 50_000
BATCH_RECORDS_CEILING = 1_000_000
"""The largest `batch_records_max` that can be configured: a worker writes a batch in one transaction."""
KAFKA_MESSAGE_BYTES_MAX = 4 * 1024 * 1024
"""The records topic's max.message.bytes; more than the largest batch that a server can be configured to accept."""
RECORD_BYTES_MIN = 2
"""Of a record in a batch: its tag and its length."""
MESSAGE_RECORDS_MAX = KAFKA_MESSAGE_BYTES_MAX // RECORD_BYTES_MIN
"""Records of a message on the records topic: as many as can be in it, so that a worker reads every message."""
DEAD_LETTER_BYTES_MAX = 2 * KAFKA_MESSAGE_BYTES_MAX
"""The dead-letter topic's max.message.bytes."""
GRPC_MESSAGE_BYTES_MAX = KAFKA_MESSAGE_BYTES_MAX
"""A message that a server receives: above its own limit, so that a batch that is too large gets our refusal."""
CLIENT_MESSAGE_BYTES_MAX = 16 * 1024 * 1024
"""A message that a client sends or receives: more than any batch, dataset's descriptors, or page of rejections."""
ARROW_BYTES_MAX = 2**31 - 1
"""Arrow counts the bytes of a column's texts in 32 bits."""
CHUNK_BYTES_CEILING = 256 * 1024 * 1024
"""The largest `chunk_bytes_max` that can be configured: documents made of a chunk may be several times its size."""

STREAMS_MAX = 200
LABELS_MAX = 16
LABEL_KEY_CHARS_MAX = 63
LABEL_VALUE_CHARS_MAX = 255
LABEL_CHAR_BYTES_MAX = 12
"""A character outside the Basic Multilingual Plane, as JSON writes it in the headers of a message on Kafka."""
MESSAGE_OVERHEAD_BYTES = LABELS_MAX * (LABEL_KEY_CHARS_MAX + LABEL_VALUE_CHARS_MAX) * LABEL_CHAR_BYTES_MAX + 4096
"""What the envelope of a stream message, or the headers of a Kafka message, may add to a batch."""
SESSION_ID_CHARS_MAX = 64
RECENT_DIGESTS_MAX = 1024
"""Digests of a job's last batches that Redis keeps: as many batches as a client may hold unacknowledged."""
MAINTENANCE_LEASE_ROUNDS: Final = 3
"""A maintenance leader that has died is replaced after so many rounds."""
LEASE_TTL_S = 10
"""A job's lease, without a renewal."""
LEASE_MARGIN_S = 1
"""By which the right to acknowledge ends before the lease expires elsewhere: for clocks that differ in rate."""
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
COLUMN_CHARS_MAX = 63
"""Of the name of a column; PostgreSQL cuts longer ones off."""
HASH_PARTITIONS_MAX = 256
TIME_PARTITIONS_MAX = 1000
"""Per table; rows of further periods stay in the default partition, because a query plan visits every partition."""
LANES_MAX = 16
PARKED_BYTES_MAX = 1024 * 1024 * 1024
"""What the parked messages of a dataset may take before its new jobs are refused; its open ones, at twice as much."""
PARKED_MESSAGE_OVERHEAD_BYTES = 1024
"""What PostgreSQL stores of a parked message besides its payload: headers, and entries of four indexes."""
REASON_CHARS_MAX = 1000
"""Of an operator's reason for a pause."""

MAX_POLL_INTERVAL_S = 300.0
EXPRESS_ROWS_TIMEOUT_S = 0.5
"""All statements that write a dataset's rows on the express path: all other tenants that it serves wait meanwhile."""
ROWS_TIMEOUT_S = 1.5
"""All statements that write a dataset's rows of a chunk: what takes longer is parked, and applied beside it."""
DRAIN_ROWS_TIMEOUT_S = 5.0
"""The same for a slice of parked messages: only other parked messages wait for it."""
STATEMENT_TIMEOUT_S = 60.0
"""PostgreSQL's statement_timeout: one statement of a chunk's transaction."""
QUICK_TASK_ROWS_MAX = 20_000
"""Staged rows of an atomic job that a worker applies beside larger ones, within ROWS_TIMEOUT_S."""
TASK_SLICE_ROWS = 100_000
"""Staged rows that are applied in one statement: so often the progress is stored, and a cancellation noticed."""
IDLE_IN_TRANSACTION_S = 10.0
"""PostgreSQL's idle_in_transaction_session_timeout: how long a frozen worker can lock its partitions' rows."""
TCP_USER_TIMEOUT_S = 10.0
"""How long sent data may stay unacknowledged by the other machine."""
CHUNK_TRANSACTION_S_MAX = 120.0
"""PostgreSQL's transaction_timeout: a chunk's whole transaction."""
STREAM_DEADLINE_S = 1.0
"""How long a stream waits for PostgreSQL; it continues without it."""
CALL_DEADLINE_S = 5.0
"""How long another call waits for PostgreSQL."""
SERVER_STATEMENT_S = 10.0
SERVER_IDLE_IN_TRANSACTION_S = 20.0
SERVER_TRANSACTION_S = 30.0
"""PostgreSQL's timeouts on a server's connections: after every caller's deadline."""
SERVER_TCP_USER_TIMEOUT_S = 5.0
DAY_S = 86_400.0
DELIVERY_TIMEOUT_S = 20.0
"""From produce to Kafka's acknowledgement; after it the stream ends with UNAVAILABLE."""
SEAL_TIMEOUT_S = 25.0
"""From the end of the stream to the server's response. A client's own deadline must be longer."""
SUBMISSION_DEADLINE_S = 30.0
SERVER_STORES_S = 20.0
"""How long a server process waits for Kafka when it starts."""
SERVER_START_S = 60.0
"""How long a server process may take until it serves; see `bulkgrpc.server.supervisor`."""


class LimitError(ValueError):
    """Limits contradict each other. broken: which, and what to do."""

    def __init__(self, broken: tuple[Broken, ...]) -> None:
        super().__init__("; ".join(f"{one.setting}: {one.message}".removeprefix(": ") for one in broken))
        self.broken = broken


@dataclass(frozen=True, slots=True)
class Broken:
    """A relation that does not hold: the setting to change, "" if both limits are constants, and the way out."""

    setting: str
    message: str


@dataclass(frozen=True, slots=True)
class Relation:
    """`smaller` + `margin` is at most `larger`, or below it if `strict`.

    Each is the name of a setting, in lower case, or of a constant of this module. A relation is checked by the
    processes that have its settings. why: what would happen otherwise.
    """

    smaller: str
    larger: str
    why: str
    margin: str = ""
    strict: bool = False


RELATIONS: Final = (
    Relation(
        "batch_bytes_max",
        "KAFKA_MESSAGE_BYTES_MAX",
        "Kafka would not store a batch with its headers",
        margin="MESSAGE_OVERHEAD_BYTES",
    ),
    Relation(
        "batch_bytes_max", "GRPC_MESSAGE_BYTES_MAX", "gRPC would not deliver a batch", margin="MESSAGE_OVERHEAD_BYTES"
    ),
    Relation("batch_bytes_max", "in_flight_bytes_max", "a batch would never fit the bytes in flight"),
    Relation(
        "batch_bytes_max",
        "CLIENT_MESSAGE_BYTES_MAX",
        "a client could not receive a page of rejections that ends with the largest record",
        margin="REJECTIONS_PAGE_BYTES_MAX",
    ),
    Relation("batch_records_max", "BATCH_RECORDS_CEILING", "a worker could not write a batch in one transaction"),
    Relation("BATCH_RECORDS_CEILING", "MESSAGE_RECORDS_MAX", "a worker would not read a batch that a server accepts"),
    Relation(
        "KAFKA_MESSAGE_BYTES_MAX",
        "DEAD_LETTER_BYTES_MAX",
        "Kafka would not store a dead letter with its reason",
        margin="MESSAGE_OVERHEAD_BYTES",
    ),
    Relation("chunk_bytes_max", "CHUNK_BYTES_CEILING", "the documents made of a chunk would not fit a column"),
    Relation(
        "CHUNK_BYTES_CEILING",
        "ARROW_BYTES_MAX",
        "the texts of a chunk would not fit a column",
        "KAFKA_MESSAGE_BYTES_MAX",
    ),
    Relation("chunk_commit_ms", "STATEMENT_TIMEOUT_S", "chunks would be tuned to time out", strict=True),
    Relation("maintenance_interval_s", "DAY_S", "the partitions of a day would be created after it began"),
    Relation("IDLE_IN_TRANSACTION_S", "STATEMENT_TIMEOUT_S", "a frozen worker would lock rows for longer", strict=True),
    Relation("TCP_USER_TIMEOUT_S", "STATEMENT_TIMEOUT_S", "a dead connection would be noticed too late", strict=True),
    Relation("EXPRESS_ROWS_TIMEOUT_S", "ROWS_TIMEOUT_S", "those that must not wait would wait longer", strict=True),
    Relation("ROWS_TIMEOUT_S", "DRAIN_ROWS_TIMEOUT_S", "rows beside the main path would have less time", strict=True),
    Relation("DRAIN_ROWS_TIMEOUT_S", "STATEMENT_TIMEOUT_S", "rows that are alone would have less time", strict=True),
    Relation("STATEMENT_TIMEOUT_S", "CHUNK_TRANSACTION_S_MAX", "a statement would outlast its chunk", strict=True),
    Relation("CHUNK_TRANSACTION_S_MAX", "MAX_POLL_INTERVAL_S", "a chunk would outlast its partitions", strict=True),
    Relation(
        "LEASE_MARGIN_S", "LEASE_TTL_S", "a stream could not acknowledge between two renewals", "LEASE_MARGIN_S", True
    ),
    Relation("STREAM_DEADLINE_S", "CALL_DEADLINE_S", "a stream would wait longer than a call", strict=True),
    Relation("CALL_DEADLINE_S", "SERVER_STATEMENT_S", "a statement would end before its caller gives up", strict=True),
    Relation("SERVER_STATEMENT_S", "SERVER_TRANSACTION_S", "a statement would outlast its transaction", strict=True),
    Relation("DELIVERY_TIMEOUT_S", "SEAL_TIMEOUT_S", "a delivery would outlast the answer to a seal", strict=True),
    Relation(
        "SEAL_TIMEOUT_S", "SUBMISSION_DEADLINE_S", "a client would give up before its seal is answered", strict=True
    ),
    Relation("SERVER_STORES_S", "SERVER_START_S", "a server that waits for Kafka would count as failed", strict=True),
)
_SECONDS: Final = {"_ms": 0.001, "_days": DAY_S}


def check_limits(**settings: float) -> None:
    """Check the relations between the limits. Raises LimitError with all that are broken.

    settings: the numbers among a process's settings, by name.
    """
    broken = tuple(_broken(settings))
    if broken:
        raise LimitError(broken)


def _broken(settings: Mapping[str, float]) -> Iterator[Broken]:
    for relation in RELATIONS:
        names = [name for name in (relation.smaller, relation.margin, relation.larger) if name]
        if any(name.islower() and name not in settings for name in names):
            continue
        smaller, larger = _base(relation.smaller, settings), _base(relation.larger, settings)
        margin = _base(relation.margin, settings) if relation.margin else 0
        if smaller + margin > larger or (relation.strict and smaller + margin == larger):
            yield _explained(relation, smaller, margin, larger)


def _explained(relation: Relation, smaller: float, margin: float, larger: float) -> Broken:
    under = "must be below" if relation.strict else "must be at most"
    left = f"{relation.smaller} {_shown(smaller, relation.smaller)}"
    if relation.margin:
        left += f" + {relation.margin} {margin:.15g}"
    what = f"{left} {under} {relation.larger} {_shown(larger, relation.smaller)}, or {relation.why}"
    if relation.smaller.islower():
        return Broken(relation.smaller, f"{what}: set it to {_shown(larger - margin, relation.smaller)} or less")
    if relation.larger.islower():
        return Broken(relation.larger, f"{what}: set it to {_shown(smaller + margin, relation.larger)} or more")
    return Broken("", f"{what}: this build is broken")


def _base(name: str, settings: Mapping[str, float]) -> float:
    """Return a limit's value in bytes, records or seconds."""
    value = settings[name] if name.islower() else globals()[name]
    return float(value) * _scale(name) if _scale(name) != 1 else value


def _shown(value: float, name: str) -> str:
    """Return a value in the unit of the limit of this name."""
    return f"{value / _scale(name):.15g}"


def _scale(name: str) -> float:
    return next((scale for suffix, scale in _SECONDS.items() if name.endswith(suffix)), 1.0)
