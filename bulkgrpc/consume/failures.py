"""What a failure leads to: one table from every failure of a chunk to one consequence. Pure.

`classify` is total: a code that no row names blocks the dataset whose rows were written, or is retried. Only a broken
build or wrong settings end a process. `step_after` adds what earlier attempts at the same chunk teach.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bulkgrpc.consume.assembly import Span
from bulkgrpc.positions import Outcome, Ownership


class Where(enum.Enum):
    """What was under way when it failed."""

    CONNECT = "connect"
    """A connection was being opened."""
    LEDGER = "ledger"
    """A statement on the service's own tables."""
    ROWS = "rows"
    """Inside the savepoint that writes the rows of one dataset: its table, its triggers, its constraints."""
    COMMIT = "commit"
    """The COMMIT itself. Constraints were made immediate before it, so it is not about a row."""
    DECODE = "decode"
    """Payloads were being decoded, without PostgreSQL."""


class Consequence(enum.Enum):
    """What a failure leads to. A closed set."""

    REJECT_ROWS = "reject rows"
    """Some of the rows are at fault: isolate them, reject them, write the others."""
    RETRY = "retry"
    """PostgreSQL or the connection is at fault: roll back, reconnect, try the chunk again."""
    BLOCK_DATASET = "block the dataset"
    """The dataset's table cannot be written now: park its batches; others continue."""
    DEFER_JOB = "defer the job"
    """The rows take too long: write fewer at once; one batch that still takes too long defers its job."""
    BLOCK_JOB = "block the job"
    """A message of the job cannot be read, however few are read at once: park the rest of the job; others continue."""
    STOP_PARTITION = "stop the partition"
    """The service's own accounting does not hold: write nothing more of the partition, and report it."""
    STOP_PROCESS = "stop the process"
    """The build is broken: no part of this process can be relied on."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure as a value, without a driver's types.

    sqlstate: PostgreSQL's code, empty if it sent none. exception: name of the Python class. context: where in the
    server it arose, as PostgreSQL reports it. dataset: empty if unknown. missing_version: the version of the dataset
    that the registry does not have, if that is the failure; else 0.
    """

    where: Where
    sqlstate: str
    exception: str
    message: str
    context: str = ""
    dataset: str = ""
    missing_version: int = 0


IN_FUNCTION: Final = r"^[^\n]*(PL/\w|SQL)"
"""A context whose first line matches: the error arose in a function, for instance of a trigger. Python and PostgreSQL
match it. Servers translate the words around these."""
AT_RAISE: Final = r"^[^\n]*PL/\w[^\n]* RAISE(\n|$)"
"""A function raised the error itself, under whatever SQLSTATE."""
ROW_CLASSES: Final = ("09", "20", "21", "22", "23", "27", "2F", "38", "39", "44", "54", "P0")
"""Classes of SQLSTATE that are about a row: data, constraints, triggers, routines, PL/pgSQL. 54, a program limit, is a
key too long for its index, for instance: it would fail at every attempt."""
SERVER_CLASSES: Final = ("08", "28", "3D", "40", "53", "55", "57", "58", "XX")
"""Classes that are about the server or the transaction, inside a function too: connection, deadlock, memory, time."""
_CONNECTION_CLASSES: Final = ("08", "28")
_CONNECTION_CODES: Final = frozenset(
    {
        "25006",  # read-only transaction: a standby, or a primary that is about to become one
        "25P03",  # idle in transaction for too long: this worker was frozen
        "3D000",  # the database is not there: it is being restored
        "53300",  # too many connections
        "55P02",  # a parameter that cannot be changed now
        "57P01",  # shut down by an administrator
        "57P02",  # another backend crashed
        "57P03",  # starting up, or in recovery
        "57P04",  # the database was dropped
        "57P05",  # an idle session was ended
    }
)
_IDLE: Final = "25P03"
_CONFLICTS: Final = frozenset({"40001", "40003", "40P01", "40000"})
"""Serialization failures and deadlocks: the same transaction may succeed when it runs again."""
_TOO_SLOW: Final = frozenset({"57014", "25P04"})
"""The statement or the transaction was ended for its time, or by an operator."""
# fmt: off
POSTGRES_CLASSES: Final = frozenset({
    "00", "01", "02", "03", "08", "09", "0A", "0B", "0F", "0L", "0P", "0Z", "10", "20", "21", "22", "23", "24",
    "25", "26", "27", "28", "2B", "2D", "2F", "34", "38", "39", "3B", "3D", "3F", "40", "42", "44", "53", "54",
    "55", "57", "58", "72", "F0", "HV", "P0", "XX",
})
# fmt: on
_UNAVAILABLE: Final = frozenset({"OperationalError", "InterfaceError", "StoreUnavailable"})
_OF_DATASET: Final = frozenset({"TableMisfit", "InvalidDataset", "StoreError"})
"""Exceptions that are about a dataset as a whole: its table."""
DAMAGED_HEADERS: Final = "DamagedHeaders"
"""The exception of a failure that is about a message whose headers cannot be read; none is raised."""
_OF_JOB: Final = frozenset({"DatasetNotFound", DAMAGED_HEADERS})
"""Exceptions that are about messages that cannot be read. Other versions of their dataset, and other jobs, can be."""
_UNCLEAR_CLASSES: Final = ("58", "XX")
"""Internal errors may be about one value, such as a geometry that an extension cannot parse, or about the table."""
_BROKEN_BUILD: Final = frozenset({"ImportError", "ModuleNotFoundError"})


def classify(failure: Failure) -> Consequence:
    """Return what a failure leads to. The first row of the table that matches counts.

    | where            | failure                                                      | consequence    |
    |------------------|--------------------------------------------------------------|----------------|
    | connect, ledger  | a module of the build is missing                             | STOP_PROCESS   |
    | rows             | RAISE in a function                                          | REJECT_ROWS    |
    | any              | connection, shutdown, read-only, no SQLSTATE from the driver | RETRY          |
    | any              | serialization failure, deadlock                              | RETRY          |
    | rows             | any other error inside a function, data, integrity, limits   | REJECT_ROWS    |
    | rows             | ended for its time; an internal error, an unknown exception  | DEFER_JOB      |
    | rows             | everything else: table, right, type, lock, disk, unknown     | BLOCK_DATASET  |
    | rows, decode     | the dataset's version is missing, the headers are damaged    | BLOCK_JOB      |
    | decode           | everything else: a batch that the decoder does not survive   | DEFER_JOB      |
    | ledger, commit   | data or integrity: the service's own accounting              | STOP_PARTITION |
    | ledger, commit … | everything else                                              | RETRY          |

    A RAISE is about a row whatever SQLSTATE it names, so it is looked at before the codes that it may borrow. While a
    dataset's rows are written or decoded, not even a missing module or exhausted memory ends the process: another
    worker would meet the same batch next.
    """
    if failure.exception in _BROKEN_BUILD and failure.where in (Where.CONNECT, Where.LEDGER):
        return Consequence.STOP_PROCESS
    if failure.where is Where.ROWS and re.search(AT_RAISE, failure.context):
        return Consequence.REJECT_ROWS
    if not failure.sqlstate:
        return _without_code(failure)
    if _is_of_connection(failure.sqlstate) or failure.sqlstate in _CONFLICTS:
        return Consequence.RETRY
    return _OF_STEP[failure.where](failure)


def _is_of_connection(code: str) -> bool:
    return code[:2] in _CONNECTION_CLASSES or code in _CONNECTION_CODES


def _without_code(failure: Failure) -> Consequence:
    if failure.exception in _UNAVAILABLE or failure.where is Where.CONNECT:
        return Consequence.RETRY
    if failure.where in (Where.ROWS, Where.DECODE):
        if failure.exception in _OF_JOB:
            return Consequence.BLOCK_JOB
        return Consequence.BLOCK_DATASET if failure.exception in _OF_DATASET else Consequence.DEFER_JOB
    return Consequence.STOP_PARTITION


def _of_rows(failure: Failure) -> Consequence:
    if failure.sqlstate in _TOO_SLOW:
        return Consequence.DEFER_JOB
    if is_row_error(failure.sqlstate, failure.context):
        return Consequence.REJECT_ROWS
    resources = failure.sqlstate[:2] == "53"
    if failure.sqlstate[:2] in _UNCLEAR_CLASSES or (re.search(IN_FUNCTION, failure.context) and not resources):
        return Consequence.DEFER_JOB
    return Consequence.BLOCK_DATASET


def is_row_error(sqlstate: str | None, context: str | None) -> bool:
    """Return whether an error that PostgreSQL reports while rows are written is about a row, not about the table.

    | SQLSTATE's class                     | raised by a function | arose in a function | otherwise |
    |--------------------------------------|----------------------|---------------------|-----------|
    | ROW_CLASSES, or none of PostgreSQL's | yes                  | yes                 | yes       |
    | SERVER_CLASSES                       | yes                  | no                  | no        |
    | any other                            | yes                  | yes                 | no        |
    """
    if not sqlstate:
        return False
    if re.search(AT_RAISE, context or "") or sqlstate[:2] in ROW_CLASSES or sqlstate[:2] not in POSTGRES_CLASSES:
        return True
    return sqlstate[:2] not in SERVER_CLASSES and re.search(IN_FUNCTION, context or "") is not None


def _of_ledger(failure: Failure) -> Consequence:
    return Consequence.STOP_PARTITION if failure.sqlstate[:2] in ("22", "23") else Consequence.RETRY


_OF_STEP: Final[Mapping[Where, Callable[[Failure], Consequence]]] = {
    Where.CONNECT: lambda _: Consequence.RETRY,
    Where.LEDGER: _of_ledger,
    Where.ROWS: _of_rows,
    Where.COMMIT: _of_ledger,
    Where.DECODE: lambda _: Consequence.DEFER_JOB,
}

ROWS_ATTEMPTS_MAX: Final = 3
"""Attempts that ended in a conflict or without a connection while rows of a dataset were written. Then they are written
apart from those of others: a trigger may end its own session."""


LEDGER_ATTEMPTS_MAX: Final = 6
"""Attempts that PostgreSQL refused in statements that write no rows. Then the chunk's datasets are written apart."""


class BlockCause(enum.StrEnum):
    """Why a dataset is blocked: `bulk.blocked_datasets.cause`."""

    TABLE = "table"
    """The table refuses every write. One slice is tried again now and then."""
    ISOLATING = "isolating"
    """A write took too long, or failed without a culprit. Its parked messages are applied one at a time."""
    PAUSED = "paused"
    """An operator paused it, until an operator resumes it."""


class Step(enum.Enum):
    """What the writer does next with a chunk that was not written. A closed set."""

    RETRY = "retry"
    """Wait, connect again if necessary, and write the chunk again."""
    BLOCK = "block"
    """Block the failure's dataset and write the chunk again: its messages are parked now."""
    ISOLATE = "isolate"
    """Park the messages of the failure's dataset, or of every dataset of the chunk if it has none: a drain applies them
    one at a time and finds the one at fault."""
    STOP_PROCESS = "stop_process"
    """Exit and report the failure."""


def step_after(failure: Failure, rows_failed: int, refused: int) -> Step:
    """Return what the main path does after a chunk was not written.

    rows_failed: how many attempts in a row failed while rows were written, this one included. refused: how many failed
    as `refused_behind_rows` defines it, this one included.

    | consequence    | where                            | attempts                       | step         |
    |----------------|----------------------------------|--------------------------------|--------------|
    | STOP_PROCESS   | any                              | any                            | STOP_PROCESS |
    | BLOCK_DATASET  | any                              | any                            | BLOCK        |
    | REJECT_ROWS    | any                              | any                            | BLOCK        |
    | DEFER_JOB      | any                              | any                            | ISOLATE      |
    | BLOCK_JOB      | any                              | any                            | ISOLATE      |
    | STOP_PARTITION | any                              | any                            | ISOLATE      |
    | RETRY          | rows                             | rows_failed: ROWS_ATTEMPTS_MAX | ISOLATE      |
    | RETRY          | ledger, commit: it was refused   | refused: LEDGER_ATTEMPTS_MAX   | ISOLATE      |
    | RETRY          | any                              | otherwise                      | RETRY        |

    BLOCK_JOB arises here for the staged rows of an atomic job only: unreadable messages are parked by the plan.
    REJECT_ROWS does not leave the writer of the rows; if it does, isolating the rows did not work. What fails again and
    again behind the rows may be due to a function of a user's table, which left something in the transaction.
    """
    consequence = classify(failure)
    if consequence is Consequence.STOP_PROCESS:
        return Step.STOP_PROCESS
    if consequence in (Consequence.BLOCK_DATASET, Consequence.REJECT_ROWS):
        return Step.BLOCK
    if consequence in (Consequence.DEFER_JOB, Consequence.BLOCK_JOB, Consequence.STOP_PARTITION):
        return Step.ISOLATE
    if failure.where is Where.ROWS:
        return Step.ISOLATE if rows_failed >= ROWS_ATTEMPTS_MAX else Step.RETRY
    again = refused_behind_rows(failure) and refused >= LEDGER_ATTEMPTS_MAX
    return Step.ISOLATE if again else Step.RETRY


def refused_behind_rows(failure: Failure) -> bool:
    """Return whether PostgreSQL refused a statement that writes no rows, although it is available.

    An idle session that it ended counts: a function of a user's table may have set that time.
    """
    code = failure.sqlstate
    if not code or failure.where not in (Where.LEDGER, Where.COMMIT) or code in _CONFLICTS:
        return False
    return code == _IDLE or not _is_of_connection(code)


def was_applied(spans: Sequence[Span], outcomes: Mapping[int, Outcome], ledger: Mapping[int, Ownership]) -> bool:
    """Return whether a chunk that the ledger does not accept was applied by an earlier attempt with an unknown result.

    It was if the ledger is at the end of each span under the chunk's owner, also after a restart of PostgreSQL.
    """
    return all(
        outcomes.get(span.partition) in (Outcome.REPLAY, Outcome.RESTARTED)
        and ledger[span.partition].next_offset == span.to_offset
        for span in spans
    )
