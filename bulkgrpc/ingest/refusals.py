"""Refusals that several modules of the session raise. Pure."""

from __future__ import annotations

from bulkgrpc.errors import Invalid, NotFound, NotNow, Reason, TooMuch, Unavailable
from bulkgrpc.ingest.ports import PostgresUnavailable, RecordTooLarge, RedisUnavailable
from bulkgrpc.model import Job, JobKey, JobState

_READ_ONLY = "25006"


def postgres_unavailable(error: PostgresUnavailable) -> Unavailable:
    """Return the refusal of a call that needs PostgreSQL while it is unavailable."""
    if not error.sqlstate:
        return Unavailable(Reason.POSTGRES_UNAVAILABLE, "PostgreSQL does not answer in time: retry in a moment")
    why = "is read-only, as during a fail-over" if error.sqlstate == _READ_ONLY else "does not serve this call now"
    return Unavailable(
        Reason.POSTGRES_UNAVAILABLE,
        f"PostgreSQL {why} (SQLSTATE {error.sqlstate}): retry in a moment",
        sqlstate=error.sqlstate,
    )


def redis_unavailable(error: RedisUnavailable) -> Unavailable:
    """Return the refusal of a call that needs Redis while it is unavailable."""
    what = "does not answer in time" if error.cause == "unreachable" else f"is unavailable ({error.cause})"
    remedy = f"; for operators: {error.remedy}" if error.remedy else ""
    return Unavailable(Reason.REDIS_UNAVAILABLE, f"Redis {what}: retry in a moment{remedy}", cause=error.cause)


def kafka_unavailable(cause: str) -> Unavailable:
    """Return the refusal of a batch that the record log did not store."""
    return Unavailable(
        Reason.KAFKA_UNAVAILABLE,
        f"Kafka did not store a batch ({cause}): open the job again with its idempotency key and continue at the first "
        "batch that was not acknowledged",
    )


def batch_above_topic(error: RecordTooLarge) -> TooMuch:
    """Return the refusal of a batch that the record log never stores, as it is."""
    return TooMuch(Reason.BATCH_TOO_LARGE, str(error), field="batch.records")


def invalid_field(field: str, message: str) -> Invalid:
    """Return the refusal of a request with an invalid field."""
    return Invalid(Reason.INVALID_FIELD, message, field=field)


def job_not_found(key: JobKey, field: str = "name") -> NotFound:
    """Return the refusal of a call about a job that does not exist, or belongs to another tenant."""
    return NotFound(
        Reason.JOB_NOT_FOUND, f"there is no job {key.name}: check the name and the token's tenant", field=field
    )


def dataset_not_found(name: str, field: str) -> NotFound:
    """Return the refusal of a call about a dataset that is not registered."""
    return NotFound(
        Reason.DATASET_NOT_FOUND,
        f"dataset {name} is not registered: register its message with `bulkgrpc datasets register`",
        field=field,
        dataset=name,
    )


def missing_seal(key: JobKey) -> NotNow:
    """Return the refusal of a stream that ended without a seal."""
    return NotNow(
        Reason.MISSING_SEAL,
        f"the stream ended without a Seal, so {key.name} stays open: open it again with the same idempotency key, "
        "continue at its next sequence and send a Seal after the last batch",
    )


def job_ended(job: Job) -> NotNow:
    """Return the refusal of a batch for a job that ended before its seal; it says how the job ended."""
    if job.lost:
        return NotNow(Reason.JOB_ENDED, f"{job.spec.key.name} failed: {job.failure_reason}", state=job.state.name)
    early = {JobState.CANCELLED: "was cancelled", JobState.EXPIRED: "expired: its client did not resume it in time"}
    how = early.get(job.state, f"failed: {job.failure_reason}" if job.failure_reason else f"ended as {job.state.name}")
    return NotNow(
        Reason.JOB_ENDED,
        f"{job.spec.key.name} {how}; it takes no more batches: submit them with another idempotency key",
        state=job.state.name,
    )


def job_closed(job: Job) -> NotNow:
    """Return the refusal of a batch for a job that is sealed or has ended."""
    if job.state in (JobState.CANCELLED, JobState.EXPIRED) or job.failure_reason:
        return job_ended(job)
    return NotNow(
        Reason.JOB_SEALED,
        f"{job.spec.key.name} is sealed and takes no more batches: end the stream, or submit them with another "
        "idempotency key",
    )
