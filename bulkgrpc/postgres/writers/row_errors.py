"""Whether an error that psycopg raised is about a row. Everything else goes up to the caller."""

from __future__ import annotations

import re
from typing import Final

import psycopg

from bulkgrpc.consume.failures import is_row_error

OWN_STATEMENT: Final = "/* bulkgrpc */"
"""Marks a statement of a function of ours that writes rows."""
OWN_FUNCTION: Final = "bulkgrpc_"
"""Begins the names of these functions, which are temporary."""
_OWN_LINE = re.compile(rf"^[^\n]*({re.escape(OWN_STATEMENT)}|pg_temp_\d+\.{OWN_FUNCTION})", re.MULTILINE)


def context_of(error: psycopg.Error) -> str:
    """Return where in the server an error arose, without the lines of a function of ours and of its statement.

    What PostgreSQL refuses in that statement itself arose in no function of the table.
    """
    context = error.diag.context or ""
    own = _OWN_LINE.search(context)
    return context if own is None else context[: own.start()]


def is_about_a_row(error: psycopg.Error) -> bool:
    """Return `is_row_error` of an error that psycopg raised."""
    return is_row_error(error.sqlstate, context_of(error))
