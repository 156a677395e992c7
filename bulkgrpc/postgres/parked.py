"""Parked messages, and why they are parked: blocked datasets and blocked jobs.

The main path parks a message in the transaction that moves its offset; a drain deletes it in the transaction that
applies it. Nothing else writes `bulk.parked`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import psycopg

from bulkgrpc.consume.assembly import Received
from bulkgrpc.consume.deferral import DeferralView, QueueKey, queue_of
from bulkgrpc.consume.failures import BlockCause, Failure
from bulkgrpc.consume.ports import NewerFormat, ParkedQueue
from bulkgrpc.model import Message
from bulkgrpc.postgres import statements
from bulkgrpc.postgres.connection import Connection

_SQL = statements.family("parked")
VIEW = _SQL["view"]
REASON_CHARS_MAX: Final = 2000
TRIAL_S_MAX: Final = 10.0
"""Longest time between two trials of a blocked dataset, seconds."""
ISOLATION_S_MAX: Final = 300.0
"""Longest time that the main path keeps off a dataset after a slice of it failed, seconds."""
JOB_TRIAL_S_MAX: Final = 600.0
SLICE_RECORDS_MAX: Final = 20_000
SLICE_BYTES_MAX: Final = 8 * 1024 * 1024
LOCK_TIMEOUT: Final = "SET LOCAL lock_timeout = '200ms'"

MessageReader = Callable[[Sequence[tuple[str, bytes]], bytes], Message]
"""Reads headers and payload of a message of a job. Raises NewerFormat if a newer version wrote it."""


class Undecodable(Exception):
    """The payloads of a dataset cannot be decoded."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def view(connection: Connection, topic: str, items: Sequence[Received], *, main_path: bool) -> DeferralView:
    """Return what decides whether messages are parked.

    main_path: call it under the lock on their offset rows. Otherwise for a slice of a drain, to which isolation is no
    block, and which is discarded if an operator asked for all of its messages.
    """
    return view_of_rows(connection.execute(VIEW, view_values(topic, items, main_path=main_path)))


def view_values(topic: str, items: Sequence[Received], *, main_path: bool) -> dict[str, object]:
    """Return the values of the statement VIEW."""
    queues = {queue_of(item) for item in items}
    return {
        "topic": topic,
        "main_path": main_path,
        "datasets": sorted({item.message.spec.dataset for item in items}),
        "job_ids": list({item.message.spec.key.job_id for item in items}),
        "partitions": [queue.partition for queue in queues],
        "tenants": [queue.tenant for queue in queues],
        "queue_datasets": [queue.dataset for queue in queues],
        "last_offset": max((item.offset for item in items), default=0),
    }


def view_of_rows(rows: Iterable[tuple[Any, ...]]) -> DeferralView:
    """Return what VIEW found."""
    blocked, discarding, jobs, parked = set[str](), set[str](), set[uuid.UUID](), set[QueueKey]()
    discarded_jobs = dict[uuid.UUID, str]()
    discard_reason = ""
    for kind, name, detail, partition in rows:
        if kind == "dataset":
            blocked.add(name)
        elif kind == "discard":
            discarding.add(name)
            discard_reason = detail
        elif kind == "job":
            jobs.add(uuid.UUID(name))
        elif kind == "discarded_job":
            discarded_jobs[uuid.UUID(name)] = detail
        else:
            parked.add(QueueKey(partition, name, detail))
    return DeferralView(
        frozenset(blocked), frozenset(discarding), frozenset(jobs), frozenset(parked), discard_reason, discarded_jobs
    )


def park(connection: Connection, topic: str, items: Sequence[Received]) -> None:
    """Park messages in the caller's transaction. Cost: one statement, no Python per record."""
    values = {
        "topic": topic,
        "partitions": [item.partition for item in items],
        "offsets": [item.offset for item in items],
        "tenants": [item.message.spec.key.tenant for item in items],
        "datasets": [item.message.spec.dataset for item in items],
        "job_ids": [item.message.spec.key.job_id for item in items],
        "records": [item.message.records for item in items],
        "headers": [_to_json(item.headers) for item in items],
        "payloads": [item.payload for item in items],
    }
    connection.execute(_SQL["park"], values)


def queues(connection: Connection, topic: str) -> Sequence[ParkedQueue]:
    """Return the queues with parked messages that may be applied or are to be discarded."""
    found = connection.execute(_SQL["queues"], {"topic": topic})
    return [ParkedQueue(QueueKey(*key), isolating) for *key, isolating in found]


def queue_of_dataset(connection: Connection, topic: str, dataset: str) -> QueueKey | None:
    """Return a queue of a dataset with a message that may be tried, None if there is none."""
    row = connection.execute(_SQL["queue_of_dataset"], {"topic": topic, "dataset": dataset}).fetchone()
    return None if row is None else QueueKey(*row)


def select(
    connection: Connection, topic: str, queue: QueueKey, messages_max: int, read: MessageReader
) -> Sequence[Received]:
    """Return the first messages of a queue that may be applied, in the order of their offsets, without a lock.

    They end before a message of a newer format: a newer worker parked it. Raises NewerFormat if the first one is.
    """
    values = {
        **_values(topic, queue),
        "messages_max": messages_max,
        "records_max": SLICE_RECORDS_MAX,
        "bytes_max": SLICE_BYTES_MAX,
    }
    found: list[Received] = []
    for offset, headers, payload in connection.execute(_SQL["select_slice"], values):
        pairs = [(name, bytes.fromhex(value)) for name, value in headers]
        try:
            message = read(pairs, payload)
        except NewerFormat:
            if not found:
                raise
            break
        found.append(Received(queue.partition, offset, message, payload, pairs))
    return found


def has_others(connection: Connection, topic: str, queue: QueueKey, items: Sequence[Received]) -> bool:
    """Return whether a queue has other messages than these."""
    values = {**_values(topic, queue), "offsets": [item.offset for item in items]}
    row = connection.execute(_SQL["has_others"], values).fetchone()
    return row is None or bool(row[0])


def lock_queue(connection: Connection, topic: str, queue: QueueKey) -> bool:
    """Lock a queue until the transaction ends; return False if another transaction applies messages of it."""
    row = connection.execute(_SQL["lock_queue"], _values(topic, queue)).fetchone()
    return row is not None and bool(row[0])


def lock_slice(connection: Connection, topic: str, queue: QueueKey, items: Sequence[Received]) -> bool:
    """Lock messages until the transaction ends; return False if one of them was applied meanwhile."""
    values = {**_values(topic, queue), "offsets": [item.offset for item in items]}
    return connection.execute(_SQL["lock_slice"], values).rowcount == len(items)


def lock_offset(connection: Connection, topic: str, partition: int) -> bool:
    """Keep the main path of a partition away until the transaction ends; return False if that takes too long.

    The caller's transaction is as it was then.
    """
    try:
        with connection.transaction():
            connection.execute(LOCK_TIMEOUT)
            connection.execute(_SQL["lock_offset"], {"topic": topic, "partition": partition})
            connection.execute("SET LOCAL lock_timeout = DEFAULT")
    except psycopg.errors.LockNotAvailable:
        return False
    return True


def delete(connection: Connection, topic: str, items: Sequence[Received]) -> None:
    """Delete messages of one partition, locked before, that this transaction applies; their jobs are not blocked.

    A job that an operator discards stays so until `end_job_discards`.
    """
    values = {
        "topic": topic,
        "partition": items[0].partition,
        "offsets": [item.offset for item in items],
        "job_ids": list({item.message.spec.key.job_id for item in items}),
    }
    connection.execute(_SQL["delete"], values)


def block_dataset(connection: Connection, dataset: str, cause: BlockCause, failure: Failure) -> None:
    """Block a dataset, or change why it is blocked. A dataset that an operator paused stays paused."""
    values = {
        "dataset": dataset,
        "cause": cause.value,
        "sqlstate": failure.sqlstate,
        "reason": _text(failure.message),
        "isolation_s_max": ISOLATION_S_MAX,
    }
    connection.execute(_SQL["block_dataset"], values)


def prolong_isolation(connection: Connection, dataset: str) -> None:
    """Let the isolation of a dataset last longer."""
    connection.execute(_SQL["prolong_isolation"], {"dataset": dataset, "isolation_s_max": ISOLATION_S_MAX})


def block_job(connection: Connection, job_id: uuid.UUID, failure: Failure) -> None:
    """Defer a job as a whole, until its next trial."""
    connection.execute(_SQL["block_job"], {**_of_jobs({job_id: failure}), "trial_s_max": JOB_TRIAL_S_MAX})


def block_jobs(connection: Connection, failures: Mapping[uuid.UUID, Failure]) -> None:
    """Defer jobs as a whole in the transaction that parks their messages. One that is deferred already stays so."""
    connection.execute(_SQL["block_jobs"], _of_jobs(failures))


def end_job_discards(connection: Connection, job_ids: Collection[uuid.UUID]) -> None:
    """Forget what an operator decided about those of the jobs that have ended."""
    connection.execute(_SQL["end_job_discards"], {"job_ids": list(job_ids)})


def claim_trial(connection: Connection) -> str | None:
    """Claim a blocked dataset whose next trial is due, so that no other worker tries it now.

    Jobs that wait for a dataset's version are tried from now on if the registry has it.
    """
    row = connection.execute(_SQL["claim_trial"], {"trial_s_max": TRIAL_S_MAX}).fetchone()
    return None if row is None else str(row[0])


def unblock_dataset(connection: Connection, dataset: str) -> bool:
    """Let a dataset be written again, unless an operator paused it; return whether it was blocked."""
    return connection.execute(_SQL["unblock_dataset"], {"dataset": dataset}).rowcount > 0


def end_isolation(connection: Connection) -> Sequence[str]:
    """Forget isolation that has been over for a while; return the datasets."""
    return [dataset for (dataset,) in connection.execute(_SQL["end_isolation"])]


def end_discards(connection: Connection, topic: str) -> None:
    """Delete the discards that have no parked message left."""
    connection.execute(_SQL["end_discards"], {"topic": topic})


def explain_discard(connection: Connection, job_ids: Sequence[uuid.UUID], reason: str) -> None:
    """Note in the jobs whose records this transaction discards why an operator asked for it."""
    connection.execute(_SQL["explain_discard"], {"job_ids": job_ids, "reason": reason})


def _values(topic: str, queue: QueueKey) -> dict[str, object]:
    return {"topic": topic, "partition": queue.partition, "tenant": queue.tenant, "dataset": queue.dataset}


def _of_jobs(failures: Mapping[uuid.UUID, Failure]) -> dict[str, object]:
    # Sorted, as in every worker: several may block the same jobs.
    jobs = sorted(failures)
    return {
        "job_ids": jobs,
        "sqlstates": [failures[job].sqlstate for job in jobs],
        "reasons": [_text(failures[job].message) for job in jobs],
        "datasets": [failures[job].dataset for job in jobs],
        "missing_versions": [failures[job].missing_version for job in jobs],
    }


def _text(reason: str) -> str:
    return reason.replace("\0", "\\0")[:REASON_CHARS_MAX]


def _to_json(headers: Iterable[tuple[str, bytes | None]]) -> str:
    # In hexadecimal: a header that another program added may have any bytes, or none.
    return json.dumps([[name, value.hex()] for name, value in headers if value is not None and "\0" not in name])
