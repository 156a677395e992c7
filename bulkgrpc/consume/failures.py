"""What a failure leads to. The one place that decides it: pure functions of what the store reported.

| the store reports                                        | the worker                                               |
|----------------------------------------------------------|----------------------------------------------------------|
| the connection failed, or could not be opened            | RETRY_CONNECTION                                         |
| a transient SQLSTATE class (`TRANSIENT_CLASSES`)         | RETRY_CONNECTION                                         |
| a timeout, for the `TIMEOUTS_MAX`-th time                | SPLIT_CHUNK                                              |
| any other error                                          | STOP_PROCESS                                             |
| replayed, gap or fenced                                  | REREAD_LEDGER                                            |
| replayed up to the chunk's end, after a failed attempt   | COUNT_AS_APPLIED: the commit went through, unanswered    |
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bulkgrpc.consume.assembly import Span
from bulkgrpc.model import Outcome, Ownership

TIMEOUT_STATES = frozenset({"57014", "25P04"})
"""query_canceled (statement_timeout) and transaction_timeout."""
TIMEOUTS_MAX = 2
"""After this many timeouts a chunk counts as too large for the time that a transaction has."""

TRANSIENT_CLASSES = frozenset(
    {
        "08",  # connection exception
        "24",  # invalid cursor state
        "25",  # invalid transaction state
        "27",  # triggered data change violation
        "28",  # invalid authorization specification
        "2B",  # dependent privilege descriptors still exist
        "2D",  # invalid transaction termination
        "2F",  # SQL routine exception
        "38",  # external routine exception
        "39",  # external routine invocation exception
        "3B",  # savepoint exception
        "40",  # transaction rollback: serialization failure, deadlock
        "53",  # insufficient resources
        "54",  # program limit exceeded
        "55",  # object not in prerequisite state: lock not available
        "57",  # operator intervention: shutdown, cancel
        "58",  # system error
        "F0",  # configuration file error
        "HV",  # foreign data wrapper error
        "XX",  # internal error
    }
)
"""SQLSTATE classes of failures that can end without any change to the chunk."""


class Where(enum.StrEnum):
    """In which step a failure was reported."""

    CONNECTION = "connection"
    """The connection could not be opened, or broke."""
    STATEMENT = "statement"
    """A statement of the transaction failed; the server answered."""
    SAVEPOINT = "savepoint"
    """A statement under a savepoint failed: its rows are known."""
    COMMIT = "commit"
    """The COMMIT failed, as with a deferred constraint; the server answered."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What a store reported. sqlstate: empty if the server did not answer. exception: the driver's class name.

    dataset, table: which, if it is known; else empty.
    """

    sqlstate: str
    exception: str
    where: Where
    message: str
    dataset: str = ""
    table: str = ""

    @property
    def timeout(self) -> bool:
        """Whether a statement or transaction took longer than it may."""
        return self.sqlstate in TIMEOUT_STATES


class Action(enum.Enum):
    """What the worker does about a chunk that was not reported as applied."""

    RETRY_CONNECTION = "retry_connection"
    """Write the chunk again on a new connection, after a back-off."""
    SPLIT_CHUNK = "split_chunk"
    """Read its messages again, into smaller chunks."""
    REREAD_LEDGER = "reread_ledger"
    """Discard every pending chunk and continue at the ledger's positions."""
    COUNT_AS_APPLIED = "count_as_applied"
    """Continue after it: an earlier attempt committed it."""
    STOP_PROCESS = "stop_process"
    """Exit and report the failure."""


def action_for(failure: Failure, timeouts: int) -> Action:
    """Return what a failed write leads to. timeouts: of this chunk so far, this failure included."""
    if failure.timeout and timeouts >= TIMEOUTS_MAX:
        return Action.SPLIT_CHUNK
    if failure.where is Where.CONNECTION or failure.sqlstate[:2] in TRANSIENT_CLASSES:
        return Action.RETRY_CONNECTION
    return Action.STOP_PROCESS


def action_for_not_next(
    spans: Sequence[Span], outcomes: Mapping[int, Outcome], ledger: Mapping[int, Ownership], *, retried: bool
) -> Action:
    """Return what it leads to that the ledger does not accept a chunk.

    retried: whether an earlier attempt failed with an unknown result. The chunk is applied then if the ledger is at the
    end of each span under the chunk's owner.
    """
    applied = retried and all(
        outcomes.get(span.partition) is Outcome.REPLAY and ledger[span.partition].next_offset == span.to_offset
        for span in spans
    )
    return Action.COUNT_AS_APPLIED if applied else Action.REREAD_LEDGER
