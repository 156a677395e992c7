"""Parse and check the messages of a stream: header, batches, seal. Refusals are those that `ingest.proto` names. Pure.

Python handles batches, never records: upb parses a `RecordBatch` natively, and its `records` stay bytes.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from bulkgrpc import limits
from bulkgrpc.errors import Conflict, Invalid, OutOfOrder, Reason, TooMuch
from bulkgrpc.ingest.refusals import invalid_field
from bulkgrpc.model import JobOptions, digest_of, is_dataset, is_idempotency_key
from bulkgrpc.v1 import ingest_pb2, jobs_pb2
from bulkgrpc.wire.v1 import wire_pb2

DATASET_PREFIX = "datasets/"


@dataclass(frozen=True, slots=True)
class Header:
    """A valid `JobHeader` with its defaults filled in. dataset_version: 0 if the header names none."""

    dataset: str
    idempotency_key: str
    labels: dict[str, str]
    session_id: str
    first_sequence: int
    options: JobOptions = JobOptions()
    dataset_version: int = 0


@dataclass(frozen=True, slots=True)
class Seal:
    """The end of a job's batches, and their number."""

    batch_count: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch whose structure is checked: its sequence, number of records, unchanged bytes and their digest."""

    sequence: int
    records: int
    payload: bytes
    digest: bytes = b""


def parse_header(raw: bytes | None) -> Header:
    """Parse the first message of a stream; None: the stream ended without one.

    Raises Invalid: EMPTY_STREAM, MALFORMED_BATCH, MISSING_HEADER, or INVALID_FIELD naming the field.
    """
    if raw is None:
        raise Invalid(Reason.EMPTY_STREAM, "the stream ended without a message: send a header first, then batches")
    message = _parse(raw)
    if message.WhichOneof("message") != "header":
        raise Invalid(Reason.MISSING_HEADER, "the first message is not a header: send a JobHeader first, then batches")
    header = message.header
    labels = dict(header.labels)
    _check_header(header, labels)
    return Header(
        dataset=header.dataset.removeprefix(DATASET_PREFIX),
        idempotency_key=header.idempotency_key or uuid.uuid4().hex,
        labels=labels,
        session_id=header.session_id,
        first_sequence=header.first_sequence,
        options=_read_options(header.options),
        dataset_version=header.dataset_version,
    )


def parse_message(raw: bytes, bytes_max: int, records_max: int) -> Batch | Seal:
    """Parse a later message of a stream: a batch, or the seal after the last one.

    Raises Invalid: MALFORMED_BATCH, MISSING_BATCH or INVALID_FIELD; TooMuch: BATCH_TOO_LARGE naming the limit.
    """
    message = _parse(raw)
    kind = message.WhichOneof("message")
    if kind == "seal":
        return Seal(message.seal.batch_count)
    if kind != "batch":
        raise Invalid(
            Reason.MISSING_BATCH,
            "a message after the header is neither a batch nor a seal: send RecordBatch messages, then a Seal",
        )
    payload = message.batch
    if len(payload) > bytes_max:
        raise TooMuch(
            Reason.BATCH_TOO_LARGE,
            f"a batch of {len(payload)} bytes is over the limit of {bytes_max}: send the records in smaller batches",
            field="batch",
            limit_bytes=str(bytes_max),
        )
    try:
        batch = ingest_pb2.RecordBatch.FromString(payload)
    except DecodeError as error:
        raise Invalid(
            Reason.MALFORMED_BATCH, "the bytes of a batch are not a valid RecordBatch: check how it is serialized"
        ) from error
    records = len(batch.records)
    if records > records_max:
        raise TooMuch(
            Reason.BATCH_TOO_LARGE,
            f"a batch of {records} records is over the limit of {records_max}: send the records in smaller batches",
            field="batch.records",
            limit_records=str(records_max),
        )
    if batch.sequence < 0:
        raise Invalid(
            Reason.INVALID_FIELD, f"sequence {batch.sequence} is below 0: number batches from 0", field="batch.sequence"
        )
    return Batch(batch.sequence, records, payload, digest_of(payload))


def check_sequence(sequence: int, next_sequence: int, *, first: bool) -> None:
    """Check that a batch may follow.

    The first batch of a stream may have any sequence up to `next_sequence`: the acknowledgements of lower ones were
    lost, and the client sends them again. Every later batch must have `next_sequence`.
    Raises OutOfOrder: SEQUENCE_BACKWARD or SEQUENCE_GAP, naming the sequence needed.
    """
    if sequence > next_sequence:
        raise OutOfOrder(
            Reason.SEQUENCE_GAP,
            f"batch {sequence} leaves a gap: send batch {next_sequence} next",
            field="batch.sequence",
            next_sequence=str(next_sequence),
        )
    if sequence < next_sequence and not first:
        raise OutOfOrder(
            Reason.SEQUENCE_BACKWARD,
            f"batch {sequence} was sent before on this stream: send batch {next_sequence} next",
            field="batch.sequence",
            next_sequence=str(next_sequence),
        )


def check_seal(batch_count: int, next_sequence: int) -> None:
    """Check that a seal names the job's number of batches. Raises OutOfOrder: SEQUENCE_BACKWARD or SEQUENCE_GAP."""
    if batch_count > next_sequence:
        raise OutOfOrder(
            Reason.SEQUENCE_GAP,
            f"a seal after {batch_count} batches leaves a gap: send batch {next_sequence} next",
            field="seal.batch_count",
            next_sequence=str(next_sequence),
        )
    if batch_count < next_sequence:
        raise OutOfOrder(
            Reason.SEQUENCE_BACKWARD,
            f"a seal after {batch_count} batches, but the job already has {next_sequence}: continue with batch "
            f"{next_sequence}, or submit these with another idempotency key",
            field="seal.batch_count",
            next_sequence=str(next_sequence),
        )


def check_repeated(batch: Batch, known_digest: bytes) -> None:
    """Check that a batch sent again equals the accepted one. Raises Conflict (BATCH_CONFLICT)."""
    if batch.digest != known_digest:
        raise Conflict(
            Reason.BATCH_CONFLICT,
            f"batch {batch.sequence} was accepted before with other bytes: send the same batches again, or submit "
            "these with another idempotency key",
            field="batch",
            sequence=str(batch.sequence),
        )


def _parse(raw: bytes) -> wire_pb2.StreamMessage:
    try:
        return wire_pb2.StreamMessage.FromString(raw)
    except DecodeError as error:
        raise Invalid(
            Reason.MALFORMED_BATCH, "the bytes of a message are not a valid stream message: check how it is serialized"
        ) from error


def _read_options(options: jobs_pb2.JobOptions) -> JobOptions:
    if options.rejections_max < 0:
        raise invalid_field(
            "header.options.rejections_max",
            f"rejections_max {options.rejections_max} is below 0: use 0 for no limit, or a limit of 1 or more",
        )
    time_to_live_s = options.time_to_live.seconds + options.time_to_live.nanos / 1e9
    if time_to_live_s and not limits.TIME_TO_LIVE_S_MIN <= time_to_live_s <= limits.TIME_TO_LIVE_S_MAX:
        raise invalid_field(
            "header.options.time_to_live",
            f"time_to_live {time_to_live_s:g} s is not within {limits.TIME_TO_LIVE_S_MIN:g} s to "
            f"{limits.TIME_TO_LIVE_S_MAX / 86_400:g} days: omit it for batches that never expire",
        )
    return JobOptions(options.atomic, options.rejections_max, time_to_live_s)


def _check_header(header: ingest_pb2.JobHeader, labels: dict[str, str]) -> None:
    dataset = header.dataset
    if not dataset.startswith(DATASET_PREFIX) or not is_dataset(dataset.removeprefix(DATASET_PREFIX)):
        raise invalid_field(
            "header.dataset", f"dataset {dataset!r} is not of the form datasets/NAME, for instance datasets/weather"
        )
    if header.idempotency_key and not is_idempotency_key(header.idempotency_key):
        raise invalid_field(
            "header.idempotency_key", "the idempotency key is not 1 to 128 printable ASCII characters without spaces"
        )
    if len(header.session_id) > limits.SESSION_ID_CHARS_MAX or not header.session_id.isprintable():
        raise invalid_field(
            "header.session_id", f"the session id is not at most {limits.SESSION_ID_CHARS_MAX} printable characters"
        )
    if header.first_sequence < 0:
        raise invalid_field(
            "header.first_sequence", f"first_sequence {header.first_sequence} is below 0: batches are numbered from 0"
        )
    if header.dataset_version < 0:
        raise invalid_field(
            "header.dataset_version",
            f"dataset_version {header.dataset_version} is below 0: versions are numbered from 1",
        )
    if len(labels) > limits.LABELS_MAX:
        raise invalid_field("header.labels", f"{len(labels)} labels; a job takes at most {limits.LABELS_MAX}")
    for key, value in labels.items():
        if not 1 <= len(key) <= limits.LABEL_KEY_CHARS_MAX or "\0" in key:
            raise invalid_field(
                "header.labels", f"label key {key[:80]!r} is not 1 to {limits.LABEL_KEY_CHARS_MAX} characters"
            )
        if len(value) > limits.LABEL_VALUE_CHARS_MAX or "\0" in value:
            raise invalid_field(
                f"header.labels[{key}]", f"the value of label {key!r} is over {limits.LABEL_VALUE_CHARS_MAX} characters"
            )
