"""Which errors of PostgreSQL mean that it is unavailable: every SQLSTATE has one meaning."""

from __future__ import annotations

import psycopg
import pytest

from bulkgrpc.postgres.unavailable import UNAVAILABLE_CLASSES, UNAVAILABLE_STATES, Meaning, meaning_of, meaning_of_state

KNOWN = sorted(
    {
        error.sqlstate
        for error in vars(psycopg.errors).values()
        if isinstance(error, type) and issubclass(error, psycopg.Error) and error.sqlstate
    }
)
OTHER_CLASSES = {
    "02", "03", "09", "0A", "0B", "0F", "0L", "0P", "0Z", "10", "20", "21", "22", "23", "24", "25", "26", "27", "2B",
    "2D", "2F", "34", "38", "39", "3B", "3D", "3F", "42", "44", "54", "55", "72", "HV", "P0",
}  # fmt: skip


def test_every_class_of_sqlstates_is_decided() -> None:
    assert {state[:2] for state in KNOWN} == OTHER_CLASSES | UNAVAILABLE_CLASSES.keys()
    assert not OTHER_CLASSES & UNAVAILABLE_CLASSES.keys()
    assert set(KNOWN) > UNAVAILABLE_STATES.keys()


@pytest.mark.parametrize("state", KNOWN)
def test_a_sqlstate_means_unavailable_if_its_class_or_itself_is_listed_and_nothing_else_does(state: str) -> None:
    listed = state[:2] in UNAVAILABLE_CLASSES or state in UNAVAILABLE_STATES
    expected = Meaning.LOCKED if state == "55P03" else Meaning.UNAVAILABLE if listed else Meaning.OTHER
    assert meaning_of_state(state) is expected
    assert meaning_of(psycopg.errors.lookup(state)("as the server says")) is expected


@pytest.mark.parametrize("state", ["25006", "57P03", "57P01", "08006", "08001", "40001", "53300", "55000", "XX000"])
def test_what_a_fail_over_answers_means_unavailable(state: str) -> None:
    assert meaning_of_state(state) is Meaning.UNAVAILABLE


@pytest.mark.parametrize("state", ["42703", "42P01", "23505", "22P02", "25P02", "0A000", "P0001"])
def test_what_no_repetition_helps_does_not(state: str) -> None:
    assert meaning_of_state(state) is Meaning.OTHER


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (psycopg.OperationalError("unavailable"), Meaning.UNAVAILABLE),
        (psycopg.InterfaceError("the connection is closed"), Meaning.UNAVAILABLE),
        (psycopg.NotSupportedError("a format that psycopg does not read"), Meaning.OTHER),
        (psycopg.ProgrammingError("a parameter is missing"), Meaning.OTHER),
    ],
)
def test_without_a_sqlstate_the_drivers_class_decides(error: psycopg.Error, expected: Meaning) -> None:
    assert meaning_of(error) is expected
