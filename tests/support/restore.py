"""Takes PostgreSQL back in time, with its own programs: a base backup put back, a lagging standby promoted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from bulkgrpc.stack import Stack
from bulkgrpc.stack.ports import choose_free
from bulkgrpc.stack.postgres_owner import binaries, postgres_owner
from bulkgrpc.stack.process import as_owner
from tests.support.waiting import wait_for

WITHIN_S = 60.0
_BUFFERS = "-c shared_buffers=64MB"


class PostgresImages:
    """The data directory of a stack's PostgreSQL, and copies of it beside it."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._part = stack.part("postgres")
        self._owner = postgres_owner()
        self._programs = binaries(self._part.directory, self._owner)

    def back_up(self, *options: str) -> Path:
        """Take a base backup while PostgreSQL runs; return its directory."""
        target = self._part.directory / f"backup-{time.monotonic_ns()}"
        self._run("pg_basebackup", "-d", self._stack.addresses.postgres, "-D", target, "--checkpoint=fast", *options)
        return target

    def copy(self) -> Path:
        """Kill PostgreSQL, copy its files and start it again; return the copy, which is as it was then."""
        target = self._part.directory / f"copy-{time.monotonic_ns()}"
        self._part.kill()
        subprocess.run(["cp", "--archive", "--reflink=auto", self._part.directory / "data", target], check=True)
        self._part.start()
        return target

    @contextmanager
    def replaced_by(self, image: Path) -> Iterator[None]:
        """Kill PostgreSQL and put an image in its place; start it at the end of the block."""
        self._part.kill()
        data = self._part.directory / "data"
        shutil.rmtree(data)
        image.rename(data)
        yield
        self._part.start()

    def restore(self, image: Path) -> None:
        """Replace PostgreSQL's data by an image and start it."""
        with self.replaced_by(image):
            pass

    @contextmanager
    def standby(self) -> Iterator[Standby]:
        """Run an asynchronous standby that follows PostgreSQL."""
        directory = self.back_up("--write-recovery-conf")
        made = Standby(self, directory, choose_free(), self._stack.addresses.postgres)
        try:
            made.start()
            yield made
        finally:
            made.stop()
            shutil.rmtree(directory, ignore_errors=True)

    def run_control(self, directory: Path, *arguments: str | Path) -> None:
        """Run pg_ctl for a data directory."""
        self._run("pg_ctl", "-D", directory, "-w", *arguments)

    def _run(self, program: str, *arguments: str | Path) -> None:
        command = [str(self._programs / program), *map(str, arguments)]
        done = subprocess.run(
            as_owner(self._owner, command),
            cwd=self._part.directory,
            env={"PATH": os.defpath, "LC_ALL": "C"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=WITHIN_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()


class Standby:
    """A standby in a directory of its own. Made by `PostgresImages.standby`."""

    def __init__(self, images: PostgresImages, directory: Path, port: int, primary: str) -> None:
        self._images = images
        self._directory = directory
        self._port = port
        self._address = make_conninfo(primary, port=port)
        self._receiver = 0
        self._running = False

    def start(self) -> None:
        """Start it; return once it follows."""
        self._running = True
        options = f"-p {self._port} {_BUFFERS}"
        log = self._directory.with_suffix(".log")
        self._images.run_control(self._directory, "-l", log, "-o", options, "start")
        assert wait_for(lambda: self._receiver_pid() > 0, WITHIN_S), "the standby does not follow"

    def fall_behind(self) -> None:
        """Receive nothing any more."""
        self._receiver = self._receiver_pid()
        os.kill(self._receiver, signal.SIGSTOP)

    @contextmanager
    def promoted(self) -> Iterator[None]:
        """Let it replace the primary, under the primary's port; the primary is killed, and what it had alone is gone.

        It serves at the end of the block.
        """
        with self._images.replaced_by(self._promote()):
            self._running = False
            yield

    def stop(self) -> None:
        """End it, if it still runs."""
        if self._running:
            self._running = False
            self._images.run_control(self._directory, "-m", "immediate", "stop")

    def _promote(self) -> Path:
        # It ends as soon as it runs again, before it reads what was sent to it.
        os.kill(self._receiver, signal.SIGTERM)
        os.kill(self._receiver, signal.SIGCONT)
        self._images.run_control(self._directory, "promote")
        self._images.run_control(self._directory, "-m", "fast", "stop")
        return self._directory

    def _receiver_pid(self) -> int:
        try:
            with psycopg.connect(self._address, connect_timeout=2) as connection:
                row = connection.execute("SELECT pid FROM pg_stat_wal_receiver WHERE status = 'streaming'").fetchone()
        except psycopg.OperationalError:
            return 0
        return 0 if row is None else int(row[0])
