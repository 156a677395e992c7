"""Applies the staged rows of atomic jobs as the threads of a worker do, when a test says so."""

from __future__ import annotations

from bulkgrpc.consume.apply_tasks import ApplyTask, TaskKind
from bulkgrpc.model import JobCounts
from bulkgrpc.postgres import apply_task
from tests.support.database import Connection

ROWS_S = 30.0


def apply_tasks(connection: Connection) -> list[JobCounts]:
    """Apply the staged rows of every sealed atomic job that is due; return what was added to each one's counts."""
    applied = []
    while (task := _next(connection)) is not None:
        if task.void:
            apply_task.drop(connection, task)
        else:
            applied.append(apply_task.apply(connection, task, ROWS_S, lambda _: True))
    return applied


def _next(connection: Connection) -> ApplyTask | None:
    return next(filter(None, (apply_task.next_task(connection, kind, ()) for kind in TaskKind)), None)
