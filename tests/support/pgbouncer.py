"""PgBouncer between the service and PostgreSQL, as Debian packages it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from bulkgrpc.stack.ports import choose_free
from tests.support.waiting import wait_for

PROGRAM = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
needs_pgbouncer = pytest.mark.skipif(
    not os.access(PROGRAM, os.X_OK), reason="PgBouncer is not installed: apt-get install pgbouncer"
)
_USER = "nobody"  # PgBouncer does not run as root


@contextmanager
def pgbouncer(postgres: str, directory: Path, pool_mode: str, *, more: str = "", pool_size: int = 5) -> Iterator[str]:
    """Run a PgBouncer in a directory of its own; yield the connection string through it of that of PostgreSQL.

    more: further lines of its settings.
    """
    target = conninfo_to_dict(postgres)
    port = choose_free()
    directory.mkdir()
    (directory / "users").write_text(f'"{target["user"]}" "{target["password"]}"\n')
    log = directory / "log"
    settings = directory / "pgbouncer.ini"
    settings.write_text(
        f"""[databases]
* = host={target["host"]} port={target["port"]}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {directory}/users
pool_mode = {pool_mode}
default_pool_size = {pool_size}
max_client_conn = 200
logfile = {log}
{more}
"""
    )
    for path in (directory, settings, directory / "users"):
        shutil.chown(path, _USER)
    with subprocess.Popen(
        [PROGRAM, str(settings)],
        user=_USER if os.getuid() == 0 else None,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        through = make_conninfo(postgres, host="127.0.0.1", port=port)
        try:
            assert wait_for(lambda: _answers(through, process, log), 20), log.read_text()
            yield through
        finally:
            process.kill()


def _answers(through: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        psycopg.connect(through, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
