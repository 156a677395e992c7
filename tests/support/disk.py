"""A small disk for PostgreSQL, to be filled. Only root can mount it."""

from __future__ import annotations

import os
import pwd
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SMALL_MIB = 24


@contextmanager
def small_disk() -> Iterator[Path]:
    """Mount a disk and return a directory on it that PostgreSQL owns."""
    disk = Path(tempfile.mkdtemp(prefix="bulkgrpc-small-", dir="/var/tmp"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SMALL_MIB}m,mode=0700", "tmpfs", str(disk)], check=True)
    try:
        inside = disk / "space"
        inside.mkdir()
        entry = pwd.getpwnam("bulkgrpc")
        for place in (disk, inside):
            os.chown(place, entry.pw_uid, entry.pw_gid)
        yield inside
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
        disk.rmdir()
