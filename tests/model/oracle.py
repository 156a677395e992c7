"""The oracle: a consumer with one cursor per partition, which nothing disturbs and which defers nothing."""

from __future__ import annotations

import uuid
from collections.abc import Container, Mapping, Sequence
from datetime import datetime

from bulkgrpc.consume.assembly import Received, Span
from bulkgrpc.consume.deferral import DeferralView
from bulkgrpc.positions import Ownership
from tests.model.database import Database, require
from tests.model.shell import Shell


def single_cursor(log: Mapping[int, Sequence[Received]], now: datetime, skipped: Container[uuid.UUID] = ()) -> Database:
    """Apply a log message by message, one partition after the other, and return the database.

    now: before anything expires. skipped: jobs whose messages are passed over.
    """
    shell = Shell(now)
    shell.database.offsets.update({partition: Ownership(partition, 0, 1) for partition in log})
    for partition, items in log.items():
        for item in items:
            span = Span(partition, item.offset, item.offset + 1, 1)
            items_now = [] if item.message.spec.key.job_id in skipped else [item]
            for waits in shell.write_chunk("oracle", [span], items_now, (DeferralView(), lambda _: None)):
                require(not waits, "the oracle waits for no other")
            for job_id in list(shell.database.tasks):
                for waits in shell.apply_task("oracle", job_id):
                    require(not waits, "the oracle waits for no other")
    require(not shell.database.parked, "the oracle defers nothing")
    return shell.database
