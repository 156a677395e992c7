"""What the tests of the client and of the command line are given: the stores behind the service, and the command."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from typer.testing import CliRunner, Result

from bulkgrpc.cli.app import app


@dataclass(frozen=True, slots=True)
class Parts:
    """A database and a topic of the session's own, and how processes find them."""

    environment: dict[str, str]
    postgres: str

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Return what a query says."""
        with psycopg.connect(self.postgres) as connection:
            return connection.execute(statement.encode(), values).fetchall()


@dataclass(frozen=True, slots=True)
class Command:
    """The command line, run in this process, for one server and tenant."""

    server: str
    tenant: str

    def __call__(self, *arguments: str | Path) -> Result:
        environment = {"BULKGRPC_SERVER": self.server, "BULKGRPC_TENANT": self.tenant, "COLUMNS": "200"}
        return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)

    def json(self, *arguments: str | Path) -> Any:
        """Return the one JSON value that a command prints with --json."""
        result = self(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def json_lines(self, *arguments: str | Path) -> list[Any]:
        """Return the JSON values, one a line, that a command prints with --json."""
        result = self(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in result.stdout.splitlines()]
