"""Places for files: whether there is one, and whether it has room. Asked before a step that would fail midway."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from bulkgrpc.stack.model import StackError

MIB = 1024 * 1024
_ALMOST_FULL_BYTES = 64 * MIB


def require_space(directory: Path, needed_bytes: int, what: str, way_out: str) -> None:
    """Raise StackError unless `needed_bytes` are free where `directory` is. The directory exists.

    way_out: what else the user can do, as an imperative.
    """
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes:
        raise StackError(
            f"no space for {what}: {directory} has {free_bytes // MIB} MiB free, and {needed_bytes // MIB} MiB are "
            f"needed: free some, or {way_out}"
        )


def of_user(locate: Callable[[str], Path], what: str, way_out: str) -> Path:
    """Return a directory of the user for `bulkgrpc`; `locate` is a function of platformdirs.

    Raises StackError if the user has no home directory.
    """
    try:
        directory = locate("bulkgrpc")
    except RuntimeError:
        directory = Path("~")
    # Releases of platformdirs differ: they raise, or leave the `~`.
    if directory.is_absolute():
        return directory
    raise StackError(f"no place for {what}: HOME is not set, and the user ID {os.geteuid()} has no home: {way_out}")


def shortage(directory: Path) -> str:
    """Return what to add to the error of a program that failed in `directory`: "" unless its disk is almost full."""
    free_bytes = shutil.disk_usage(directory).free
    return f"; {directory} has only {free_bytes // MIB} MiB free" if free_bytes < _ALMOST_FULL_BYTES else ""
