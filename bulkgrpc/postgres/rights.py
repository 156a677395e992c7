"""The rights of the role that servers and workers run as: granted by `bulkgrpc migrate --grant-to`, checked at start.

The role that migrates owns the schema `bulk`. The runtime role owns nothing but the tables of the datasets that it
creates. `sql/rights.sql:missing` is the list of the rights that it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import psycopg
from psycopg import sql

from bulkgrpc.postgres import statements
from bulkgrpc.postgres.connection import UNLIMITED, Connection, connect

_SQL = statements.family("rights")
SHOWN_MAX = 3
_TO_REGISTER = "CREATE"
"""Of the rights on schemas, only registering a dataset that creates its table needs this one."""


class RightsMissing(Exception):
    """A role lacks rights. `str()` names them, and what grants them."""


@dataclass(frozen=True, slots=True)
class Right:
    """A right. object: its name, quoted as in SQL. kind: of the object, as in GRANT."""

    privilege: str
    kind: str
    object: str

    def __str__(self) -> str:
        """Name the right: `INSERT on table bulk.jobs`."""
        return f"{self.privilege} on {self.kind.lower()} {self.object}"

    @property
    def only_to_register(self) -> bool:
        """Whether streams are served and written without it."""
        return self.privilege == _TO_REGISTER

    def grant(self, role: str) -> str:
        """Return the statement that grants it to a role."""
        return f"GRANT {self.privilege} ON {self.kind} {self.object} TO {sql.Identifier(role).as_string(None)}"


def missing(connection: psycopg.Connection[tuple[object, ...]], role: str | None = None) -> Sequence[Right]:
    """Return the rights that a role lacks, by default the connection's. Raises psycopg.Error if it does not exist."""
    rows = connection.execute(_SQL["missing"], {"role": role}).fetchall()
    return [Right(str(privilege), str(kind), str(name)) for privilege, kind, name in rows]


def check(connection: psycopg.Connection[tuple[object, ...]]) -> Sequence[Right]:
    """Check the rights of the connection's role. Returns those that it lacks and only registering a dataset needs.

    Raises RightsMissing if it lacks others.
    """
    found = missing(connection)
    required = [right for right in found if not right.only_to_register]
    if required:
        row = connection.execute("SELECT current_user").fetchone()
        raise RightsMissing(refusal(str(row and row[0]), required))
    return found


def refusal(role: str, lacking: Sequence[Right]) -> str:
    """Return one line that names the rights that a role lacks, up to SHOWN_MAX, and what grants them."""
    named = ", ".join(f"{right} ({right.grant(role)})" for right in lacking[:SHOWN_MAX])
    more = f", and {len(lacking) - SHOWN_MAX} more" if len(lacking) > SHOWN_MAX else ""
    return (
        f"role {role} lacks {named}{more}: run `bulkgrpc migrate --grant-to {role}` as the owner of the schema bulk, "
        "or grant them as the owner of the object"
    )


def grant(postgres: str, role: str) -> None:
    """Grant a role all that servers and workers need, also on what later migrations create.

    postgres: a connection string of the owner of the schema `bulk`. Raises psycopg.Error if there is no such role,
    RightsMissing if the owner may not grant all of it.
    """
    with connect(postgres, "bulkgrpc-migrate", UNLIMITED) as connection:
        for right in missing(connection, role):
            # What may not be granted is reported below: PostgreSQL only warns if there are other rights on the object.
            _try(connection, right.grant(role))
        to = sql.Identifier(role).as_string(None)
        default = f"IN SCHEMA bulk GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {to}"
        connection.execute(f"ALTER DEFAULT PRIVILEGES {default}".encode())
        for table, internal in connection.execute(_SQL["tables_of_datasets"], {"role": role}).fetchall():
            rights = "SELECT, INSERT, UPDATE, DELETE, TRUNCATE" if internal else "SELECT, INSERT, UPDATE, DELETE"
            _try(connection, f"GRANT {rights} ON TABLE {table} TO {to}")
        left = missing(connection, role)
    if left:
        named = "; ".join(right.grant(role) for right in left)
        raise RightsMissing(
            f"not every right of role {role} could be granted: run as a superuser or the owner: {named}"
        )


def _try(connection: Connection, statement: str) -> None:
    with suppress(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement.encode())
