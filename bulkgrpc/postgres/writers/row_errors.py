"""Whether an error that psycopg raised is about a row. Everything else goes up to the caller."""

from __future__ import annotations

import psycopg

from bulkgrpc.consume.failures import is_row_error


def is_about_a_row(error: psycopg.Error) -> bool:
    """Return `is_row_error` of an error that psycopg raised."""
    return is_row_error(error.sqlstate, error.diag.context)
