"""The form of a message on the records topic. Key: the tenant. Value: a serialized RecordBatch; empty for a seal.

Headers are text, so that every Kafka tool can show them.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import NoReturn

from google.protobuf.message import DecodeError

from bulkgrpc.consume.ports import NewerFormat
from bulkgrpc.limits import MESSAGE_RECORDS_MAX
from bulkgrpc.model import JobKey, JobOptions, JobSpec, Kind, Message, digest_of, from_us, is_dataset, is_tenant, to_us
from bulkgrpc.v1.ingest_pb2 import RecordBatch

FORMAT = b"1"
"""A version that changes what headers mean raises it, and reads the formats before it, too."""
FORMAT_DIGITS_MAX = 9
INT4_MAX, INT8_MAX = 2**31 - 1, 2**63 - 2


class MalformedMessage(ValueError):
    """A message on the records topic that no bulkgrpc server wrote, or whose headers were damaged since."""


def to_headers(message: Message) -> list[tuple[str, str | bytes | None]]:
    """Return the Kafka headers of a message. Only one that opens its lane has labels and the idempotency key."""
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
        pairs.append(("job-records", b"%d" % message.job_records))
    # Both are optional, and a reader that ignores them does what it did before there were any.
    if message.stored_sequence:
        pairs.append(("stored-sequence", b"%d" % message.stored_sequence))
    if message.attempt:
        pairs.append(("attempt", b"%d" % message.attempt))
    if message.partitions:
        pairs.append(("partitions", b",".join(b"%d" % partition for partition in message.partitions)))
    if message.opens:
        pairs.append(("idempotency-key", message.spec.idempotency_key.encode()))
        pairs.append(("labels", json.dumps(message.spec.labels).encode()))
    # On every message: any of them may be the first that creates the job's row.
    if message.spec.options != JobOptions():
        pairs.append(("options", json.dumps(asdict(message.spec.options)).encode()))
    if message.digest:
        pairs.append(("digest", message.digest.hex().encode()))
    if message.schema:
        pairs.append(("schema", message.schema.hex().encode()))
    if message.expires_at is not None:
        pairs.append(("expires-at-us", b"%d" % to_us(message.expires_at)))
    if message.trace_context:
        pairs.append(("traceparent", message.trace_context.encode()))
    return pairs


def from_headers(headers: Sequence[tuple[str, bytes]] | None) -> Message:
    """Parse a message's headers.

    Raises NewerFormat if a newer version wrote it, MalformedMessage, which names what is missing or wrong.
    """
    values = dict(headers or ())
    try:
        # Before any other header: a newer format may have others.
        if values["format"] != FORMAT:
            _raise_for(values["format"])
        records = _whole(values["records"], MESSAGE_RECORDS_MAX)
        tenant, dataset = values["tenant"].decode(), values["dataset"].decode()
        if not is_tenant(tenant) or not is_dataset(dataset):
            raise MalformedMessage(f"tenant {tenant!r} or dataset {dataset!r} is not a valid name")
        key, labels = values.get("idempotency-key", b"").decode(), json.loads(values.get("labels", b"{}"))
        if any("\0" in text for text in (key, *labels, *labels.values())):
            raise MalformedMessage("U+0000 in the idempotency key or a label")
        partitions = tuple(_whole(text, INT4_MAX) for text in values.get("partitions", b"").split(b",") if text)
        return Message(
            kind=Kind(values["kind"].decode()),
            spec=JobSpec(
                JobKey(tenant, uuid.UUID(values["job"].decode())),
                key,
                dataset,
                _whole(values["version"], INT4_MAX),
                labels,
                JobOptions(**json.loads(values.get("options", b"{}"))),
            ),
            lane=_whole(values["lane"], max(len(partitions) - 1, 0)),
            sequence=_whole(values["sequence"], INT8_MAX),
            records=records,
            job_records=_whole(values.get("job-records", b"0"), INT8_MAX),
            sent_at=from_us(int(values["sent-at-us"])),
            digest=bytes.fromhex(values.get("digest", b"").decode()),
            expires_at=from_us(int(values["expires-at-us"])) if "expires-at-us" in values else None,
            trace_context=values.get("traceparent", b"").decode(),
            partitions=partitions,
            schema=bytes.fromhex(values.get("schema", b"").decode()),
            stored_sequence=_whole(values.get("stored-sequence", b"0"), INT8_MAX),
            attempt=_whole(values.get("attempt", b"0"), INT4_MAX),
        )
    except KeyError as error:
        raise MalformedMessage(f"header {error.args[0]!r} is missing") from error
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise MalformedMessage(f"headers cannot be read: {error}") from error


def message_of(headers: Sequence[tuple[str, bytes]] | None, payload: bytes) -> Message:
    """Return a message of a job; one with damaged headers says so in `Message.damage`.

    Raises NewerFormat, and MalformedMessage if the headers are damaged and do not say whose message it is.
    """
    try:
        return from_headers(headers)
    except MalformedMessage as error:
        message = _damaged(dict(headers or ()), payload, str(error))
        if message is None:
            raise
        return message


def _damaged(values: dict[str, bytes], payload: bytes, damage: str) -> Message | None:
    """Return what is known of a message with damaged headers; None if they name no job, tenant and dataset.

    Sequence and number of records are in the payload of a batch as well; a payload that cannot be read is no batch's.
    """
    try:
        tenant, dataset = values["tenant"].decode(), values["dataset"].decode()
        job = JobKey(tenant, uuid.UUID(values["job"].decode()))
        batch = RecordBatch.FromString(payload)
    except (KeyError, ValueError, AttributeError, DecodeError):
        return None
    if not is_tenant(tenant) or not is_dataset(dataset) or batch.sequence < 0:
        return None
    is_batch = bool(payload) or values.get("kind") == Kind.BATCH.encode()
    return Message(
        kind=Kind.BATCH if is_batch else Kind.SEAL,
        spec=JobSpec(job, "", dataset, 0),
        lane=0,
        sequence=batch.sequence,
        records=len(batch.records),
        job_records=0,
        sent_at=datetime.now(UTC),
        digest=digest_of(payload) if is_batch else b"",
        damage=f"a message of the job has damaged headers: {damage}",
    )


def _raise_for(message_format: bytes) -> NoReturn:
    """Raise for a format that is not ours. A lower one was never written."""
    if message_format.isdigit() and len(message_format) <= FORMAT_DIGITS_MAX and int(message_format) > int(FORMAT):
        raise NewerFormat(int(message_format), int(FORMAT))
    raise MalformedMessage(f"unknown format {message_format!r}")


def _whole(text: bytes, most: int) -> int:
    number = int(text)
    if not 0 <= number <= most:
        raise MalformedMessage(f"{number} is not between 0 and {most}")
    return number
