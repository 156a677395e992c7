"""Mutants: workers with one protection of containment off: `python -m tests.blast.mutants NAME MODULE ARGUMENTS…`.

Only tests start these. For each protection there is a fault on which the checker must turn red.
"""

from __future__ import annotations

import runpy
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.chaos.mutants import _replace


def unchecked_table() -> None:
    """A table is written without a look at what it is."""
    from bulkgrpc.datasets.table_fit import Fit
    from bulkgrpc.postgres.writers import savepoint
    from bulkgrpc.postgres.writers.table import TableWriter

    def check(_self: Any, connection: Any, dataset: Any, **_: Any) -> Fit:
        connection.execute(savepoint.OPEN)
        types = tuple(column.type for column in dataset.columns)
        return Fit((), types, row_triggers=False, triggers=False)

    _replace(TableWriter, "check", check)


def skipped_as_written() -> None:
    """The rows that a trigger skips are counted as those that COPY was sent."""
    from bulkgrpc.postgres.writers.table import TableWriter

    check = TableWriter.check
    _replace(TableWriter, "check", lambda *given, **named: replace(check(*given, **named), row_triggers=False))


def parked_and_lost() -> None:
    """The offset moves past messages that are not kept."""
    from bulkgrpc.postgres import parked

    _replace(parked, "park", lambda *_: None)


def overtaking() -> None:
    """A message is applied although one of its queue is parked. The drain is slow, so that there is one for a while."""
    from bulkgrpc.postgres import parked
    from workers import drain

    _replace(drain, "SLICE_MESSAGES", 1)
    queues, view_of_rows = parked.queues, parked.view_of_rows

    def slow(*given: Any) -> Any:
        threading.Event().wait(0.5)
        return queues(*given)

    _replace(parked, "queues", slow)
    _replace(parked, "view_of_rows", lambda rows: replace(view_of_rows(rows), parked_queues=frozenset()))


def never_forgotten() -> None:
    """A parked message stays when it is applied."""
    from bulkgrpc.postgres import parked

    _replace(parked, "delete", lambda *_: None)


def never_tried() -> None:
    """A blocked dataset stays blocked when its table is repaired."""
    from bulkgrpc.postgres import parked

    _replace(parked, "claim_trial", lambda _connection: None)


def greedy_drain() -> None:
    """A drain keeps the main path away from its partition while it writes."""
    from bulkgrpc.postgres import parked, statements

    lock_queue, lock_offset = parked.lock_queue, statements.family("parked")["lock_offset"]

    def locked(connection: Any, topic: str, queue: Any) -> bool:
        connection.execute(lock_offset, {"topic": topic, "partition": queue.partition})
        return lock_queue(connection, topic, queue)

    _replace(parked, "lock_queue", locked)


def fragile() -> None:
    """A table that cannot be written ends the worker."""
    from bulkgrpc.consume.failures import Step
    from workers import writer

    _replace(writer, "step_after", lambda *_: Step.STOP_PROCESS)


def unchecked_key() -> None:
    """A table is written without a look at its key."""
    from tests.chaos.mutants import without_key_check

    without_key_check()


MUTANTS: dict[str, Callable[[], None]] = {
    mutant.__name__: mutant
    for mutant in (
        unchecked_table,
        unchecked_key,
        skipped_as_written,
        parked_and_lost,
        overtaking,
        never_forgotten,
        never_tried,
        greedy_drain,
        fragile,
    )
}


if __name__ == "__main__":
    name, module, *sys.argv[1:] = sys.argv[1:]
    sys.argv[0] = module
    MUTANTS[name]()
    runpy.run_module(module, run_name="__main__", alter_sys=False)
