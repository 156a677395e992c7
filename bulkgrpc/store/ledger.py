"""The ledger: what was applied. Offsets and owners of partitions, sequences of lanes; in the caller's transaction.

Here a stale owner is fenced: `lock_spans` holds the partitions' rows until the transaction ends, and refuses a chunk
that is not the next one under its owner's epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from bulkgrpc.store import statements
from bulkgrpc.store.chunk import Lane, LaneKey, Received, Span
from bulkgrpc.words import JobKey, Outcome, Ownership, may_apply_span

_SQL = statements.family("ledger")
Connection = psycopg.Connection[tuple[Any, ...]]


class NotNext(Exception):
    """The ledger does not take a chunk. outcomes: of each of its partitions; ledger: where those stand."""

    def __init__(self, outcomes: Mapping[int, Outcome], ledger: Mapping[int, Ownership]) -> None:
        super().__init__(", ".join(f"partition {p}: {o.value}" for p, o in outcomes.items()))
        self.outcomes = outcomes
        self.ledger = ledger


def acquire(connection: Connection, topic: str, partitions: Sequence[int]) -> dict[int, Ownership]:
    """Take partitions over from whoever held them and tell where each goes on."""
    return _ownerships(
        connection.execute(_SQL["acquire_partitions"], {"topic": topic, "partitions": sorted(partitions)})
    )


def read(connection: Connection, topic: str, partitions: Sequence[int]) -> dict[int, Ownership]:
    """Tell where partitions stand, and whose they are."""
    return _ownerships(connection.execute(_SQL["read_offsets"], {"topic": topic, "partitions": list(partitions)}))


def lock_spans(connection: Connection, topic: str, spans: Sequence[Span]) -> None:
    """Hold the spans' partitions until the transaction ends.

    Raises NotNext unless every span is the next one of its partition under its owner's epoch (`may_apply_span`).
    """
    partitions = [span.partition for span in spans]
    ledger = _ownerships(connection.execute(_SQL["lock_offsets"], {"topic": topic, "partitions": partitions}))
    outcomes = {
        span.partition: (
            may_apply_span(
                ledger[span.partition].next_offset,
                ledger[span.partition].owner_epoch,
                span.from_offset,
                span.owner_epoch,
            )
            if span.partition in ledger
            else Outcome.FENCED
        )
        for span in spans
    }
    if any(outcome is not Outcome.NEXT for outcome in outcomes.values()):
        raise NotNext(outcomes, ledger)


def advance_offsets(connection: Connection, topic: str, spans: Sequence[Span]) -> None:
    """Move the spans' partitions to their ends."""
    values = {
        "topic": topic,
        "partitions": [span.partition for span in spans],
        "to_offsets": [span.to_offset for span in spans],
    }
    connection.execute(_SQL["advance_offsets"], values)


def lock_lanes(connection: Connection, jobs: Sequence[JobKey]) -> dict[LaneKey, Lane]:
    """Return the lanes of jobs, held until the transaction ends; a lane that is not there has applied nothing."""
    cursor = connection.execute(_SQL["lock_lanes"], {"job_ids": [job.job_id for job in jobs]})
    return {(job_id, lane): Lane(next_sequence, sealed=sealed) for job_id, lane, next_sequence, sealed in cursor}


def open_job(connection: Connection, first: Received) -> None:
    """Make the row of the job that a first batch belongs to, if it is not there."""
    spec = first.message.spec
    values = {
        "job_id": spec.key.job_id,
        "tenant": spec.key.tenant,
        "idempotency_key": spec.idempotency_key,
        "dataset": spec.dataset,
        "dataset_version": spec.dataset_version,
        "labels": Jsonb(spec.labels),
        "partition": first.partition,
        "create_time": first.message.sent_at,
    }
    connection.execute(_SQL["open_job"], values)


def advance_lanes(connection: Connection, lanes: Mapping[LaneKey, Lane]) -> None:
    """Move lanes to where they stand in `lanes`."""
    values = {
        "job_ids": [job_id for job_id, _ in lanes],
        "lanes": [lane for _, lane in lanes],
        "next_sequences": [lane.next_sequence for lane in lanes.values()],
        "sealed": [lane.sealed for lane in lanes.values()],
    }
    connection.execute(_SQL["advance_lanes"], values)


def _ownerships(cursor: psycopg.Cursor[tuple[Any, ...]]) -> dict[int, Ownership]:
    return {row[0]: Ownership(*row) for row in cursor}
