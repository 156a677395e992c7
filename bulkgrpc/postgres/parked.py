"""Parked messages, and why they are parked: blocked datasets and blocked jobs.

The main path parks a message in the transaction that moves its offset; a drain deletes it in the transaction that
applies it. Nothing else writes `bulk.parked`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from bulkgrpc.consume.assembly import Received
from bulkgrpc.consume.deferral import DeferralView, QueueKey, queue_of
from bulkgrpc.consume.failures import BlockCause, Failure
from bulkgrpc.model import Message
from bulkgrpc.postgres import statements
from bulkgrpc.postgres.connection import Connection

_SQL = statements.family("parked")
REASON_CHARS_MAX: Final = 2000
TRIAL_S_MAX: Final = 30.0
"""Longest time between two trials of a blocked dataset, seconds."""
JOB_TRIAL_S_MAX: Final = 3600.0
SLICE_RECORDS_MAX: Final = 20_000
SLICE_BYTES_MAX: Final = 8 * 1024 * 1024
LOCK_TIMEOUT: Final = "SET LOCAL lock_timeout = '500ms'"

HeaderReader = Callable[[Sequence[tuple[str, bytes]]], Message]
"""Reads the headers of a message that was accepted before."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which parked messages are applied next. trial: only this dataset's, although it is blocked; empty for all."""

    partition: int
    messages_max: int
    read_headers: HeaderReader
    trial: str = ""


class Undecodable(Exception):
    """The payloads of a dataset cannot be decoded."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class SliceIncomplete(Exception):
    """Parked messages were deleted by another drain, although it cannot hold the lock."""


def view(connection: Connection, topic: str, items: Sequence[Received]) -> DeferralView:
    """Return what decides whether messages are parked. Call it under the lock on their offset rows."""
    queues = {queue_of(item) for item in items}
    values = {
        "topic": topic,
        "datasets": sorted({item.message.spec.dataset for item in items}),
        "job_ids": list({item.message.spec.key.job_id for item in items}),
        "partitions": [queue.partition for queue in queues],
        "tenants": [queue.tenant for queue in queues],
        "queue_datasets": [queue.dataset for queue in queues],
    }
    blocked, discarding, jobs, parked = set[str](), set[str](), set[uuid.UUID](), set[QueueKey]()
    for kind, name, dataset, discards, partition in connection.execute(_SQL["view"], values):
        if kind == "dataset":
            blocked.add(name)
            discarding.update([name] if discards else ())
        elif kind == "job":
            jobs.add(uuid.UUID(name))
        else:
            parked.add(QueueKey(partition, name, dataset))
    return DeferralView(frozenset(blocked), frozenset(discarding), frozenset(jobs), frozenset(parked))


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


def select(connection: Connection, topic: str, selection: Selection) -> Sequence[Received]:
    """Lock a partition's drain and return the first parked messages that may be applied, in offset order.

    Empty if there are none, or if another worker drains the partition. If these are all of them, the partition's main
    path waits until the transaction ends: then it finds nothing parked and applies directly again.
    """
    values = {
        "topic": topic,
        "partition": selection.partition,
        "messages_max": selection.messages_max,
        "records_max": SLICE_RECORDS_MAX,
        "bytes_max": SLICE_BYTES_MAX,
        "trial": selection.trial,
    }
    row = connection.execute(_SQL["lock_partition"], values).fetchone()
    if row is None or not row[0]:
        return ()
    found = _slice(connection, selection, values)
    if found and not selection.trial and len(found) < selection.messages_max:
        connection.execute(LOCK_TIMEOUT)
        connection.execute(_SQL["lock_offset"], values)
        found = _slice(connection, selection, values)
    return found


def drain_view(connection: Connection, items: Sequence[Received], selection: Selection) -> DeferralView:
    """Return the view under which a selected slice is planned: which of its datasets are discarded."""
    values = {"datasets": sorted({item.message.spec.dataset for item in items})}
    discarding = frozenset(name for (name,) in connection.execute(_SQL["discarding"], values))
    return DeferralView(blocked_datasets=discarding, discarding_datasets=discarding).on_trial(selection.trial)


def delete(connection: Connection, topic: str, items: Sequence[Received]) -> None:
    """Delete messages that this transaction applies. Raises SliceIncomplete if one is not there."""
    values = {"topic": topic, "partition": items[0].partition, "offsets": [item.offset for item in items]}
    if connection.execute(_SQL["delete"], values).rowcount != len(items):
        raise SliceIncomplete(f"partition {items[0].partition}: parked messages disappeared")


def partitions(connection: Connection, topic: str) -> Sequence[int]:
    """Return the partitions that have parked messages."""
    return [partition for (partition,) in connection.execute(_SQL["partitions"], {"topic": topic})]


def block_dataset(connection: Connection, dataset: str, cause: BlockCause, failure: Failure) -> None:
    """Block a dataset, or change why it is blocked. A dataset that an operator paused stays paused."""
    values = {
        "dataset": dataset,
        "cause": cause.value,
        "sqlstate": failure.sqlstate,
        "reason": _text(failure.message),
        "trial_s_max": TRIAL_S_MAX,
    }
    connection.execute(_SQL["block_dataset"], values)


def block_job(connection: Connection, job_id: uuid.UUID, failure: Failure) -> None:
    """Defer a job as a whole, until its next trial."""
    values = {
        "job_id": job_id,
        "sqlstate": failure.sqlstate,
        "reason": _text(failure.message),
        "trial_s_max": JOB_TRIAL_S_MAX,
    }
    connection.execute(_SQL["block_job"], values)


def unblock_jobs(connection: Connection) -> None:
    """Let the jobs be applied again whose next trial is due."""
    connection.execute(_SQL["unblock_jobs"])


def claim_trial(connection: Connection) -> str | None:
    """Claim a blocked dataset whose next trial is due, so that no other worker tries it now."""
    row = connection.execute(_SQL["claim_trial"], {"trial_s_max": TRIAL_S_MAX}).fetchone()
    return None if row is None else str(row[0])


def partition_of(connection: Connection, topic: str, dataset: str) -> int | None:
    """Return a partition with parked messages of a dataset, None if there are none."""
    row = connection.execute(_SQL["partition_of_dataset"], {"topic": topic, "dataset": dataset}).fetchone()
    return None if row is None else int(row[0])


def unblock_dataset(connection: Connection, dataset: str) -> None:
    """Let a dataset be written again, unless an operator paused it."""
    connection.execute(_SQL["unblock_dataset"], {"dataset": dataset})


def end_isolation(connection: Connection) -> Sequence[str]:
    """Forget isolation that has been over for a while; return the datasets."""
    return [dataset for (dataset,) in connection.execute(_SQL["end_isolation"])]


def _slice(connection: Connection, selection: Selection, values: dict[str, object]) -> list[Received]:
    found = []
    for offset, headers, payload in connection.execute(_SQL["select_slice"], values):
        pairs = [(name, value.encode("latin-1")) for name, value in headers]
        found.append(Received(selection.partition, offset, selection.read_headers(pairs), payload, pairs))
    return found


def _text(reason: str) -> str:
    return reason.replace("\0", "\\0")[:REASON_CHARS_MAX]


def _to_json(headers: Iterable[tuple[str, bytes]]) -> str:
    # Latin-1 keeps every byte. U+0000, which jsonb refuses, is in no header of an accepted message.
    return json.dumps([[name, value.decode("latin-1")] for name, value in headers])
