"""The errors of PostgreSQL, for callers that do not import its driver."""

from psycopg import Error as PostgresError

__all__ = ["PostgresError"]
