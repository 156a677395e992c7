"""Which errors of PostgreSQL are about a row. Everything else goes up to the caller, who retries or gives up."""

from __future__ import annotations

import re

import psycopg

ROW_CLASSES = ("09", "20", "21", "22", "23", "27", "2F", "38", "39", "44", "54", "P0")
"""Classes of SQLSTATE that are about a row: data, constraints, triggers, routines, PL/pgSQL. 54, a program limit, is
for instance a key that is too long for an index: it would fail at every attempt."""
SERVER_CLASSES = ("08", "25", "40", "53", "55", "57", "58", "XX")
"""Classes that are about the server or the transaction, inside a function too: connection, deadlock, memory, time."""
IN_FUNCTION = r"^(PL/\w+|SQL) function "
"""A context that starts so: the error arose in a function, for instance of a trigger. Python and PostgreSQL read it."""
AT_RAISE = r"^PL/\w+ function [^\n]* at RAISE(\n|$)"
"""A function raised the error itself, under whatever SQLSTATE."""


def is_row_error(sqlstate: str | None, context: str | None) -> bool:
    """Return whether an error is about a row: the others may be written without it.

    | SQLSTATE's class | raised by a function | arose in a function | otherwise |
    |------------------|----------------------|---------------------|-----------|
    | ROW_CLASSES      | yes                  | yes                 | yes       |
    | SERVER_CLASSES   | yes                  | no                  | no        |
    | any other        | yes                  | yes                 | no        |
    """
    if sqlstate is None:
        return False
    if sqlstate[:2] in ROW_CLASSES or re.search(AT_RAISE, context or ""):
        return True
    return sqlstate[:2] not in SERVER_CLASSES and re.search(IN_FUNCTION, context or "") is not None


def is_about_a_row(error: psycopg.Error) -> bool:
    """Return `is_row_error` of an error that psycopg raised."""
    return is_row_error(error.sqlstate, error.diag.context)
