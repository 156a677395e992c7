"""Mutants: programs with one protection switched off: `python -m tests.chaos.mutants NAME MODULE ARGUMENTS…`.

Only tests start these. For each promise there is one on which the checker must turn red; `none` changes nothing.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bulkgrpc.model import Message
from bulkgrpc.positions import Outcome


def none() -> None:
    """Change nothing."""


def no_fence() -> None:
    """The ledger accepts any span, under any epoch, at any offset."""
    from bulkgrpc.postgres import ledger

    _replace(ledger, "may_apply_span", lambda *_, **__: Outcome.NEXT)


def ledger_apart() -> None:
    """The rows are committed before the ledger moves."""
    from bulkgrpc.postgres import apply as module

    def commit_first(connection: Any, group: Any, work: Any, writer: Any) -> None:
        write_group(connection, group, work, writer)
        connection.execute("COMMIT")
        connection.execute("BEGIN")

    write_group = module._write_group
    _replace(module, "_write_group", commit_first)


def end_apart() -> None:
    """The rows of an atomic job are committed before its end."""
    from bulkgrpc.postgres import apply_task as module

    def commit_first(connection: Any, *given: Any) -> Any:
        done = apply_rows(connection, *given)
        connection.execute("COMMIT")
        connection.execute("BEGIN")
        return done

    apply_rows = module._apply_rows
    _replace(module, "_apply_rows", commit_first)


def early_acknowledgement() -> None:
    """The server acknowledges a batch as soon as the producer has queued it."""
    from bulkgrpc.ingest.deliveries import Deliveries

    expect = Deliveries.expect

    def expected(self: Deliveries, batch: Any, budget_bytes: int) -> Callable[[Any], None]:
        expect(self, batch, budget_bytes)(None)
        return lambda _: None

    _replace(Deliveries, "expect", expected)


def acks_without_lease() -> None:
    """A stream acknowledges what is stored, whether or not another one has opened its job since."""
    from bulkgrpc.ingest.lease import Lease

    async def careless(_: Lease) -> None:
        return

    _replace(Lease, "hold", careless)
    _replace(Lease, "confirm", careless)


def no_sequence() -> None:
    """A lane applies a batch that it applied before."""
    from bulkgrpc.consume import plan
    from bulkgrpc.positions import may_apply_batch

    def careless(lane_next_sequence: int, sequence: int) -> Outcome:
        outcome = may_apply_batch(lane_next_sequence, sequence)
        return Outcome.NEXT if outcome is Outcome.REPLAY else outcome

    from bulkgrpc.postgres import ledger

    _replace(plan, "may_apply_batch", careless)
    # The digests are unique: inserting one twice would fail.
    _replace(ledger, "batch_rows", lambda *_: ())


def deletes_first() -> None:
    """Of a chunk's records with equal keys those that delete come first, whatever their order is."""
    from bulkgrpc.postgres.writers import table, update

    write = update.write

    def careless(connection: Any, rows: Any, job: Any) -> Any:
        if not rows.has_deletes:
            return write(connection, rows, job)
        update.delete(connection, rows, rows.deletes)
        done = write(connection, replace(rows.keep(~rows.deletes), deletes=None), job[~rows.deletes])
        return replace(done, written=np.bincount(job).astype(np.int32))

    if table.BY_POLICY["update"] is not write:
        raise AttributeError("records that delete are written otherwise: the mutant would change nothing")
    table.BY_POLICY["update"] = careless


def holes() -> None:
    """A lane applies a batch although one before it is missing."""
    from bulkgrpc.consume import plan
    from bulkgrpc.positions import may_apply_batch

    def careless(lane_next_sequence: int, sequence: int) -> Outcome:
        outcome = may_apply_batch(lane_next_sequence, sequence)
        return Outcome.NEXT if outcome is Outcome.GAP else outcome

    _replace(plan, "may_apply_batch", careless)


def careless_commit() -> None:
    """Commits do not wait for the write-ahead log to be flushed."""
    from bulkgrpc.postgres import connection

    conninfo = connection.conninfo
    _replace(
        connection,
        "conninfo",
        lambda *arguments: conninfo(*arguments).replace("synchronous_commit=on", "synchronous_commit=off"),
    )


def silent_rejections() -> None:
    """Rejected records are counted but not reported."""
    from bulkgrpc.postgres import rejections

    _replace(rejections, "add", lambda *_: None)


def no_retry() -> None:
    """After a failure of PostgreSQL a worker waits for an hour."""
    from bulkgrpc.backoff import Backoff

    _replace(Backoff, "advance", lambda _: 3600.0)


def no_budget() -> None:
    """The server reads from its clients without a bound while Kafka is stalled."""
    from bulkgrpc.ingest.byte_budget import ByteBudget
    from bulkgrpc.kafka.producer import RecordsProducer

    async def acquire(_self: ByteBudget, _size_bytes: int) -> int:
        return 0

    _replace(ByteBudget, "acquire", acquire)
    start = RecordsProducer.__init__
    _replace(RecordsProducer, "__init__", lambda self, settings, _queue_bytes_max: start(self, settings, 1 << 30))


def blind_to_topics() -> None:
    """Neither workers nor servers compare the topic with the ledger.

    Nor is anything made of what messages say was stored: by it most of what the topic lost is found and sent again.
    """
    from bulkgrpc.consume import topic_check
    from bulkgrpc.ingest.topic_guard import TopicGuard

    _replace(topic_check, "examine", lambda *_: None)
    _replace(TopicGuard, "refusal", lambda _: None)
    blind_to_losses()


def trusts_its_position() -> None:
    """A worker continues from the position that it remembers, although the ledger came back older."""
    from bulkgrpc.postgres import ledger
    from workers.ledger_watch import BeatingLedgerWatch

    # Whatever the epochs are: an older ledger has older ones.
    _replace(ledger, "may_apply_span", lambda *_, **__: Outcome.NEXT)
    _replace(BeatingLedgerWatch, "restarted", lambda _: False)


def blind_to_losses() -> None:
    """Nothing is made of what messages say was stored."""
    from bulkgrpc.consume import plan

    _replace(plan, "loss_shown_by", lambda *_: None)


def silent_reset() -> None:
    """If Kafka lost an offset, the worker continues with the next message that Kafka has."""
    from bulkgrpc.consume import topic_check
    from bulkgrpc.kafka import consumer

    _replace(topic_check, "examine", lambda *_: None)
    configuration = consumer.configuration
    _replace(consumer, "configuration", lambda settings: {**configuration(settings), "auto.offset.reset": "earliest"})
    from bulkgrpc.consume.ownership import OwnedPartitions

    outcome = OwnedPartitions.outcome

    def careless(self: OwnedPartitions, partition: int, offset: int) -> Outcome:
        found = outcome(self, partition, offset)
        if found is not Outcome.GAP:
            return found
        self.owned[partition] = replace(self.owned[partition], next_offset=offset)
        return Outcome.NEXT

    _replace(OwnedPartitions, "outcome", careless)
    no_fence()
    holes()


def seal_passes() -> None:
    """A seal is applied although a batch of its job was set aside."""
    from bulkgrpc.consume.deferral import defer
    from bulkgrpc.model import Kind
    from bulkgrpc.postgres import transaction

    def careless(items: Any, *arguments: Any) -> Any:
        reasons = zip(items, defer(items, *arguments), strict=True)
        return tuple(None if item.message.kind is Kind.SEAL else reason for item, reason in reasons)

    _replace(transaction, "defer", careless)


def strict_offsets() -> None:
    """A worker waits for the messages of offsets that Kafka shows to no consumer."""
    from bulkgrpc.consume.gaps import GapStep
    from workers import partitions

    _replace(partitions, "step_after", lambda *_: GapStep.READ_AGAIN)


def reads_aborted() -> None:
    """A worker applies what a transaction aborted."""
    from bulkgrpc.kafka import consumer

    configuration = consumer.configuration
    _replace(
        consumer,
        "configuration",
        lambda settings: {**configuration(settings), "isolation.level": "read_uncommitted"},
    )


def short_poll() -> None:
    """Not a mutant: a worker with a max.poll.interval of 7 s, so that a test can exceed it."""
    from bulkgrpc.kafka import consumer

    configuration = consumer.configuration
    _replace(
        consumer,
        "configuration",
        lambda settings: (
            {**configuration(settings), "max.poll.interval.ms": 7000, "session.timeout.ms": 6000}
            if settings.group_protocol == "classic"
            else {**configuration(settings), "max.poll.interval.ms": 7000}
        ),
    )


def eager_express() -> None:
    """Not a mutant: a worker that serves all tenants but the largest ahead of the main path, however light the load."""
    from bulkgrpc.consume.express import TenantShares
    from workers import poller

    _replace(poller, "HOT_FOR_S", 0.0)
    _replace(poller, "is_late", lambda *_: True)
    _replace(TenantShares, "hot", lambda self: frozenset(sorted(self._work, key=self._work.__getitem__)[-1:]))


def newer_reader() -> None:
    """Not a mutant: a worker of a later version, which reads format 2, too. What changed in it is nothing."""
    from bulkgrpc.kafka import message

    read = message.from_headers

    def newer(headers: Sequence[tuple[str, bytes]] | None) -> Message:
        later = ("format", b"2")
        return read([("format", message.FORMAT) if pair == later else pair for pair in headers or ()])

    _replace(message, "from_headers", newer)


def without_key_check() -> None:
    """Not a mutant: tables without a key are written, so that nothing but the service prevents duplicates."""
    from bulkgrpc.datasets import table_fit

    _replace(table_fit, "_key_misfits", lambda _dataset, _table: iter(()))


MUTANTS: dict[str, Callable[[], None]] = {
    mutant.__name__: mutant
    for mutant in (
        none,
        no_fence,
        ledger_apart,
        end_apart,
        early_acknowledgement,
        acks_without_lease,
        no_sequence,
        deletes_first,
        holes,
        careless_commit,
        silent_rejections,
        no_retry,
        no_budget,
        silent_reset,
        seal_passes,
        trusts_its_position,
        strict_offsets,
        reads_aborted,
        blind_to_topics,
        blind_to_losses,
        short_poll,
        newer_reader,
        eager_express,
    )
}


def _replace(owner: Any, name: str, value: object) -> None:
    if not hasattr(owner, name):
        raise AttributeError(f"{owner} has no {name}: the mutant would change nothing")
    setattr(owner, name, value)


if __name__ == "__main__":
    mutant, module, *sys.argv[1:] = sys.argv[1:]
    sys.argv[0] = module
    without_key_check()
    MUTANTS[mutant]()
    runpy.run_module(module, run_name="__main__", alter_sys=False)
