from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

from bulkgrpc.consume.failures import (
    LEDGER_ATTEMPTS_MAX,
    Consequence,
    Failure,
    Step,
    Where,
    classify,
    refused_behind_rows,
    step_after,
)

CODES: dict[str, str] = {
    cls.sqlstate: name
    for name, cls in vars(errors).items()
    if isinstance(cls, type) and issubclass(cls, psycopg.Error) and cls.sqlstate
}
FOREIGN = ("45000", "20000", "20001", "U0001", "ZZZZZ")
"""SQLSTATEs that users' functions raise and PostgreSQL does not define."""


def failure(where: Where, code: str, *, raised: bool = False, in_function: bool = False) -> Failure:
    context = ""
    if raised:
        context = "PL/pgSQL function check_row() line 3 at RAISE\nCOPY weather, line 7"
    elif in_function:
        context = "PL/pgSQL function audit() line 3 at SQL statement\nCOPY weather, line 7"
    return Failure(where, code, CODES.get(code, "OperationalError"), "text", context, "weather")


def test_every_code_of_postgresql_has_a_consequence_wherever_it_comes_from() -> None:
    assert len(CODES) > 250
    for code in (*CODES, *FOREIGN, ""):
        for where in Where:
            assert classify(failure(where, code)) in Consequence


def test_no_failure_of_a_table_a_batch_or_a_server_ends_the_process() -> None:
    for code in (*CODES, *FOREIGN, ""):
        for where in Where:
            for raised in (False, True):
                found = classify(failure(where, code, raised=raised, in_function=raised))
                assert found is not Consequence.STOP_PROCESS, (code, where)


@pytest.mark.parametrize("code", [*CODES, *FOREIGN])
def test_an_error_that_a_function_raises_is_about_a_row_whatever_its_code(code: str) -> None:
    assert classify(failure(Where.ROWS, code, raised=True, in_function=True)) is Consequence.REJECT_ROWS


@pytest.mark.parametrize("code", ["42P01", "42703", "42883", "2F005", "54001", "22012", "39004", "0A000", "21000"])
def test_an_error_inside_a_function_is_about_a_row(code: str) -> None:
    assert classify(failure(Where.ROWS, code, in_function=True)) is Consequence.REJECT_ROWS


@pytest.mark.parametrize(
    "code", ["22003", "22001", "23502", "23503", "23505", "23514", "23P01", "44000", "54000", "45000", "P0001"]
)
def test_a_value_or_a_constraint_is_about_a_row(code: str) -> None:
    assert classify(failure(Where.ROWS, code)) is Consequence.REJECT_ROWS


@pytest.mark.parametrize(
    "code",
    [
        "42P01",
        "42703",
        "42501",
        "42804",
        "428C9",
        "42809",
        "0A000",
        "55000",
        "55P03",
        "53100",
    ],
)
def test_a_table_that_cannot_be_written_blocks_its_dataset(code: str) -> None:
    assert classify(failure(Where.ROWS, code)) is Consequence.BLOCK_DATASET


@pytest.mark.parametrize("code", ["25006", "57P01", "57P03", "08006", "53300", "28P01", "3D000", "40001", "40P01"])
@pytest.mark.parametrize("where", [Where.CONNECT, Where.LEDGER, Where.ROWS, Where.COMMIT])
def test_a_server_that_is_unavailable_is_tried_again(code: str, where: Where) -> None:
    assert classify(failure(where, code)) is Consequence.RETRY


@pytest.mark.parametrize("code", ["57014", "25P04"])
def test_rows_that_take_too_long_defer_their_job_and_a_busy_ledger_is_tried_again(code: str) -> None:
    assert classify(failure(Where.ROWS, code)) is Consequence.DEFER_JOB
    assert classify(failure(Where.LEDGER, code)) is Consequence.RETRY


def test_a_deadlock_or_a_full_disk_inside_a_trigger_is_not_about_a_row() -> None:
    assert classify(failure(Where.ROWS, "40P01", in_function=True)) is Consequence.RETRY
    assert classify(failure(Where.ROWS, "53100", in_function=True)) is Consequence.BLOCK_DATASET
    assert classify(failure(Where.ROWS, "57014", in_function=True)) is Consequence.DEFER_JOB


@pytest.mark.parametrize("name", ["ValueError", "ArrowInvalid", "PanicException", "MemoryError", "ImportError"])
def test_an_unknown_exception_while_rows_are_decoded_or_written_may_be_about_one_batch(name: str) -> None:
    assert classify(Failure(Where.ROWS, "", name, "text", dataset="weather")) is Consequence.DEFER_JOB
    assert classify(Failure(Where.DECODE, "", name, "text", dataset="weather")) is Consequence.DEFER_JOB


@pytest.mark.parametrize("code", ["58030", "XX002", "XX000"])
def test_an_internal_error_may_be_about_one_batch(code: str) -> None:
    assert classify(failure(Where.ROWS, code)) is Consequence.DEFER_JOB


def test_a_lock_that_a_trigger_does_not_get_may_be_about_one_batch() -> None:
    assert classify(failure(Where.ROWS, "55P03", in_function=True)) is Consequence.DEFER_JOB


@pytest.mark.parametrize("exception", ["DatasetNotFound", "DamagedHeaders"])
@pytest.mark.parametrize("where", [Where.DECODE, Where.ROWS])
def test_a_message_that_cannot_be_read_blocks_its_job_and_no_dataset(where: Where, exception: str) -> None:
    found = Failure(where, "", exception, "text")
    assert classify(found) is Consequence.BLOCK_JOB
    assert step_after(found, 1, 0) is Step.ISOLATE


def test_a_dataset_that_cannot_be_looked_up_is_tried_again() -> None:
    assert classify(Failure(Where.ROWS, "", "TableMisfit", "text")) is Consequence.BLOCK_DATASET
    assert classify(Failure(Where.DECODE, "", "StoreUnavailable", "text")) is Consequence.RETRY


def test_accounting_that_does_not_hold_stops_the_partition() -> None:
    assert classify(failure(Where.LEDGER, "23514")) is Consequence.STOP_PARTITION
    assert classify(failure(Where.COMMIT, "23503")) is Consequence.STOP_PARTITION
    assert classify(Failure(Where.LEDGER, "", "AssertionError", "text")) is Consequence.STOP_PARTITION


def test_only_a_broken_build_stops_the_process() -> None:
    assert classify(Failure(Where.LEDGER, "", "ModuleNotFoundError", "psycopg")) is Consequence.STOP_PROCESS
    assert classify(Failure(Where.CONNECT, "", "OperationalError", "no route")) is Consequence.RETRY


def test_steps_follow_from_the_consequence() -> None:
    assert step_after(failure(Where.ROWS, "42P01"), 1, 1) is Step.BLOCK
    assert step_after(failure(Where.ROWS, "57014"), 1, 1) is Step.ISOLATE
    assert step_after(failure(Where.COMMIT, "23503"), 1, 1) is Step.ISOLATE
    assert step_after(failure(Where.LEDGER, "57014"), 9, LEDGER_ATTEMPTS_MAX - 1) is Step.RETRY
    assert step_after(failure(Where.CONNECT, "08006"), 9, 9) is Step.RETRY
    assert step_after(failure(Where.ROWS, "08006"), 2, 2) is Step.RETRY


def test_rows_that_conflict_again_and_again_are_written_apart_from_those_of_others() -> None:
    for code in ("40P01", "57P01"):  # a trigger may end its own session
        failed = failure(Where.ROWS, code)
        assert [step_after(failed, attempts, 0) for attempts in (1, 2, 3)] == [Step.RETRY, Step.RETRY, Step.ISOLATE]
    assert step_after(failure(Where.LEDGER, "40P01"), 9, 9) is Step.RETRY


@pytest.mark.parametrize(("where", "code"), [(Where.LEDGER, "42501"), (Where.LEDGER, "25P03"), (Where.COMMIT, "P0001")])
def test_what_is_refused_again_and_again_behind_the_rows_is_written_apart(where: Where, code: str) -> None:
    assert refused_behind_rows(failure(where, code))
    assert step_after(failure(where, code), 0, LEDGER_ATTEMPTS_MAX - 1) is Step.RETRY
    assert step_after(failure(where, code), 0, LEDGER_ATTEMPTS_MAX) is Step.ISOLATE


@pytest.mark.parametrize(
    ("where", "code"), [(Where.LEDGER, "57P01"), (Where.LEDGER, "40001"), (Where.CONNECT, "42501")]
)
def test_what_fails_while_postgresql_is_unavailable_is_retried_however_often(where: Where, code: str) -> None:
    assert not refused_behind_rows(failure(where, code))
    assert step_after(failure(where, code), 0, 99) is Step.RETRY


@pytest.mark.parametrize(
    "context",
    [
        "PL/pgSQL function f() line 3 at RAISE\nCOPY weather, line 2",
        "PL/pgSQL-Funktion f() Zeile 3 bei RAISE",
        "fonction PL/pgSQL f(), ligne 3 à RAISE",
    ],
)
def test_a_raise_is_known_in_whatever_language_the_server_reports_it(context: str) -> None:
    found = Failure(Where.ROWS, "57014", "QueryCanceled", "text", context, "weather")
    assert classify(found) is Consequence.REJECT_ROWS
