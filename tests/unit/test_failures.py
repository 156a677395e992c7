"""The failure table, and the adapter that reports what psycopg raised."""

from __future__ import annotations

import psycopg
import pytest

from bulkgrpc.consume.assembly import Span
from bulkgrpc.consume.failures import TIMEOUTS_MAX, Action, Failure, Where, action_for, action_for_not_next
from bulkgrpc.model import Outcome, Ownership
from bulkgrpc.postgres.worker_ports import failure_of

RETRIED = (psycopg.OperationalError, psycopg.InternalError, psycopg.InterfaceError)
KNOWN = sorted(
    (error.sqlstate, error)
    for error in vars(psycopg.errors).values()
    if isinstance(error, type) and issubclass(error, psycopg.Error) and error.sqlstate
)


def action_of(error: psycopg.Error, where: Where = Where.STATEMENT, timeouts: int = 0) -> Action:
    return action_for(failure_of(error, where), timeouts)


@pytest.mark.parametrize(("sqlstate", "error"), KNOWN)
def test_every_sqlstate_that_psycopg_takes_for_transient_is_retried_and_no_other(
    sqlstate: str, error: type[psycopg.Error]
) -> None:
    expected = Action.RETRY_CONNECTION if issubclass(error, RETRIED) else Action.STOP_PROCESS
    assert action_of(error("as the server says")) is expected


@pytest.mark.parametrize("error", [*RETRIED, psycopg.errors.ConnectionTimeout, psycopg.errors.PipelineAborted])
def test_an_error_without_a_sqlstate_is_one_of_the_connection(error: type[psycopg.Error]) -> None:
    failure = failure_of(error("the connection is lost\n"), Where.STATEMENT)
    assert failure == Failure("", error.__name__, Where.CONNECTION, "the connection is lost")
    assert action_for(failure, 0) is Action.RETRY_CONNECTION


@pytest.mark.parametrize("error", [psycopg.ProgrammingError, psycopg.DataError])
def test_an_error_of_the_call_itself_stops_the_process(error: type[psycopg.Error]) -> None:
    assert action_of(error("cannot adapt")) is Action.STOP_PROCESS


def test_whatever_keeps_a_connection_from_opening_is_retried() -> None:
    assert action_of(psycopg.errors.InvalidCatalogName("gone"), Where.CONNECTION) is Action.RETRY_CONNECTION


@pytest.mark.parametrize("error", [psycopg.errors.QueryCanceled, psycopg.errors.TransactionTimeout])
def test_a_chunk_that_times_out_repeatedly_is_split(error: type[psycopg.Error]) -> None:
    actions = [action_of(error("too long"), timeouts=timeouts) for timeouts in range(1, TIMEOUTS_MAX + 1)]
    assert actions == [Action.RETRY_CONNECTION] * (TIMEOUTS_MAX - 1) + [Action.SPLIT_CHUNK]


@pytest.mark.parametrize(
    ("outcome", "next_offset", "retried", "action"),
    [
        (Outcome.REPLAY, 10, True, Action.COUNT_AS_APPLIED),
        (Outcome.REPLAY, 10, False, Action.REREAD_LEDGER),
        (Outcome.REPLAY, 11, True, Action.REREAD_LEDGER),
        (Outcome.REPLAY, 9, True, Action.REREAD_LEDGER),
        (Outcome.GAP, 10, True, Action.REREAD_LEDGER),
        (Outcome.FENCED, 10, True, Action.REREAD_LEDGER),
    ],
)
def test_a_chunk_counts_as_applied_only_if_an_earlier_attempt_may_have_committed_it(
    outcome: Outcome, next_offset: int, retried: bool, action: Action
) -> None:
    spans = [Span(0, 5, 10, 1), Span(1, 5, 10, 1)]
    outcomes = {0: Outcome.REPLAY, 1: outcome}
    ledger = {0: Ownership(0, 10, 1), 1: Ownership(1, next_offset, 1)}
    assert action_for_not_next(spans, outcomes, ledger, retried=retried) is action
