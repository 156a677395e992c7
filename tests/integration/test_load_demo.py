"""`bulkgrpc demo`, as a user runs it: from nothing, and once more."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bulkgrpc.stack import PartState, Stack
from tests.conftest import new_data_dir

WITHIN_S = 150.0


def run_demo(folder: Path) -> Any:
    command = [str(Path(sys.executable).parent / "bulkgrpc"), "demo", "--data-dir", str(folder), "--json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BULKGRPC_")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def folder() -> Iterator[Path]:
    made = new_data_dir()
    yield made
    Stack(made).destroy()
    shutil.rmtree(made, ignore_errors=True)


@pytest.mark.timeout(320)
def test_the_demo_compares_every_row_and_works_twice(folder: Path) -> None:
    first, second = run_demo(folder), run_demo(folder)
    assert [job["replayed"] for job in first["jobs"]] == [False, False]
    assert [job["replayed"] for job in second["jobs"]] == [True, True]
    for report in (first, second):
        assert [(job["file_rows"], job["table_rows"], job["different"]) for job in report["jobs"]] == [
            (26_115, 26_115, 0),
            (336_776, 336_776, 0),
        ]
    assert {part.state for part in Stack(folder).status()} == {PartState.STOPPED}
