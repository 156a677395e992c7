"""What all tests share: one stack of real parts, started once a session."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkgrpc.stack import Addresses, Stack

pytest_plugins = ["tests.support.database", "tests.support.tables"]


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """A running stack. BULKGRPC_TEST_STACK_DIR names one to use and leave running, for quick repeated runs.

    BULKGRPC_TEST_POSTGRES_PROGRAMS is the `bin` directory of another PostgreSQL.
    """
    kept = os.environ.get("BULKGRPC_TEST_STACK_DIR")
    programs = os.environ.get("BULKGRPC_TEST_POSTGRES_PROGRAMS")
    running = Stack(Path(kept) if kept else new_data_dir(), postgres_programs=Path(programs) if programs else None)
    try:
        running.up()
        yield running
    finally:
        if not kept:
            running.destroy()


@pytest.fixture(scope="session")
def addresses(stack: Stack) -> Addresses:
    """Where the session's stack answers."""
    return stack.addresses


@pytest.fixture(scope="module")
def own_stack() -> Iterator[Stack]:
    """A running stack of the module's own, to break at will."""
    running = Stack(new_data_dir())
    try:
        running.up()
        yield running
    finally:
        running.destroy()


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A new directory for a stack, which is destroyed with what runs in it."""
    directory = new_data_dir()
    yield directory
    Stack(directory).destroy()
    if directory.exists():
        directory.rmdir()


def new_data_dir() -> Path:
    """Make a directory that PostgreSQL's system user may enter, which pytest's own are not."""
    directory = Path(tempfile.mkdtemp(prefix="bulkgrpc-test-", dir="/var/tmp"))
    directory.chmod(0o755)
    return directory
