"""The form of a message on the records topic. Key: the tenant. Value: a serialized RecordBatch, or empty (seal).

Headers are text, so that any Kafka tool shows them.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from bulkgrpc.words import JobKey, JobOptions, JobSpec, Kind, Message

FORMAT = b"1"
RECORDS_MAX = 1_000_000
"""Above what any server may be set to take in a batch."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class MalformedMessage(ValueError):
    """A message on the topic that no server of ours can have written."""


def to_headers(message: Message) -> list[tuple[str, str | bytes | None]]:
    """Return the Kafka headers of a message; labels and idempotency key only at sequence 0."""
    pairs: list[tuple[str, str | bytes | None]] = [
        ("format", FORMAT),
        ("kind", message.kind.encode()),
        ("job", str(message.spec.key.job_id).encode()),
        ("tenant", message.spec.key.tenant.encode()),
        ("dataset", message.spec.dataset.encode()),
        ("version", b"%d" % message.spec.dataset_version),
        ("lane", b"%d" % message.lane),
        ("sequence", b"%d" % message.sequence),
        ("records", b"%d" % message.records),
        ("sent-at-us", b"%d" % to_us(message.sent_at)),
    ]
    if message.kind is Kind.SEAL:
        pairs.append(("lane-records", b"%d" % message.lane_records))
    if message.sequence == 0:
        pairs.append(("idempotency-key", message.spec.idempotency_key.encode()))
        pairs.append(("labels", json.dumps(message.spec.labels).encode()))
    # On every message: a job that another stream opened under the same key must not lose them.
    if message.spec.options != JobOptions():
        pairs.append(("options", json.dumps(asdict(message.spec.options)).encode()))
    if message.digest:
        pairs.append(("digest", message.digest.hex().encode()))
    if message.expires_at is not None:
        pairs.append(("expires-at-us", b"%d" % to_us(message.expires_at)))
    if message.trace_context:
        pairs.append(("traceparent", message.trace_context.encode()))
    return pairs


def from_headers(headers: Sequence[tuple[str, bytes]] | None) -> Message:
    """Read a message's headers.

    Raises MalformedMessage naming what is missing or wrong.
    """
    found = dict(headers or ())
    try:
        if found["format"] != FORMAT:
            raise MalformedMessage(f"unknown format {found['format']!r}")
        records = int(found["records"])
        if not 0 <= records <= RECORDS_MAX:
            raise MalformedMessage(f"{records} records are no batch of ours")
        return Message(
            kind=Kind(found["kind"].decode()),
            spec=JobSpec(
                JobKey(found["tenant"].decode(), uuid.UUID(found["job"].decode())),
                found.get("idempotency-key", b"").decode(),
                found["dataset"].decode(),
                int(found["version"]),
                json.loads(found.get("labels", b"{}")),
                JobOptions(**json.loads(found.get("options", b"{}"))),
            ),
            lane=int(found["lane"]),
            sequence=int(found["sequence"]),
            records=records,
            lane_records=int(found.get("lane-records", b"0")),
            sent_at=_from_us(found["sent-at-us"]),
            digest=bytes.fromhex(found.get("digest", b"").decode()),
            expires_at=_from_us(found["expires-at-us"]) if "expires-at-us" in found else None,
            trace_context=found.get("traceparent", b"").decode(),
        )
    except KeyError as error:
        raise MalformedMessage(f"header {error.args[0]!r} is missing") from error
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise MalformedMessage(f"headers cannot be read: {error}") from error


def _from_us(text: bytes) -> datetime:
    return _EPOCH + timedelta(microseconds=int(text))


def to_us(time: datetime) -> int:
    """Return microseconds since 1970 of an aware time."""
    delta = time - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
