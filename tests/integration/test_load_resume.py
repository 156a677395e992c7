"""A load that was broken continues by itself when it is run again; files that were loaded are not loaded twice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.service_values import Command, Parts

pytest_plugins = ["tests.integration.service_parts"]

DATASET = ("--dataset", "sensor_readings")


def sensors(path: Path, numbers: range) -> Path:
    rows = "".join(f"sensor-{number},{number}.5,2024-05-01T12:00:00Z\n" for number in numbers)
    path.write_text("sensor_id,value,sampled_at\n" + rows)
    return path


def killed_in_the_middle(command: Command, *arguments: str | Path) -> int:
    """Start a load, kill it with SIGKILL once some of its records were accepted, and return their number."""
    environment = {**os.environ, "BULKGRPC_SERVER": command.server, "BULKGRPC_TENANT": command.tenant}
    line = [
        str(Path(sys.executable).with_name("bulkgrpc")),
        "load",
        *map(str, arguments),
        *DATASET,
        "--batch-rows",
        "50",
    ]
    with subprocess.Popen(line, env=environment, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        accepted = 0
        while not accepted:
            assert process.poll() is None, "the load had ended before it could be killed"
            assert time.monotonic() < deadline, "no record was accepted"
            jobs = command.json_lines("jobs", "list")
            accepted = jobs[0]["counts"]["accepted"] if jobs else 0
        process.kill()
    return accepted


@pytest.mark.parametrize("given", [(), ("--key", "mine")], ids=["without a key", "with a key"])
def test_a_killed_load_of_several_files_is_run_again_and_has_each_record_once(
    given: tuple[str, ...], command: Command, parts: Parts, tenant: str, tmp_path: Path
) -> None:
    rows = 400_000
    folder = tmp_path / "in"
    folder.mkdir()
    sensors(folder / "a.csv", range(rows // 2))
    sensors(folder / "b.csv", range(rows // 2, rows))
    killed_in_the_middle(command, folder, *given)
    (broken,) = command.json_lines("jobs", "list")
    assert broken["state"] == "OPEN"
    report = command.json("load", folder, *DATASET, "--batch-rows", "50", *given)
    assert report["job"]["name"] == broken["name"]
    assert report["job"]["counts"] == {
        "accepted": rows, "written": rows, "duplicate": 0, "rejected": 0, "expired": 0, "skipped": 0
    }  # fmt: skip
    assert parts.rows("SELECT count(*) FROM sensor_readings WHERE tenant = %s", tenant) == [(rows,)]


def test_files_that_were_loaded_are_not_loaded_twice_unless_again_is_given(command: Command, tmp_path: Path) -> None:
    path = sensors(tmp_path / "s.csv", range(10))
    first = command.json("load", path, *DATASET)
    result = command("load", path, *DATASET)
    assert result.exit_code == 0
    assert "Nothing was sent" in result.stderr
    assert "--again" in result.stderr
    again = command.json("load", path, *DATASET, "--again")
    assert again["job"]["name"] != first["job"]["name"]
    assert again["job"]["counts"]["duplicate"] == 10


@pytest.mark.parametrize("change", ["content", "options", "job options", "labels"])
def test_another_content_or_option_is_another_job(change: str, command: Command, tmp_path: Path) -> None:
    path = sensors(tmp_path / "s.csv", range(10))
    first = command.json("load", path, *DATASET)
    stored = path.stat()
    if change == "content":
        sensors(path, range(10, 20))
        os.utime(path, ns=(stored.st_atime_ns, stored.st_mtime_ns))
    options = {"options": ("--batch-rows", "3"), "job options": ("--atomic",), "labels": ("--label", "a=b")}.get(
        change, ()
    )
    second = command.json("load", path, *DATASET, *options)
    assert (second["replayed"], second["job"]["name"] == first["job"]["name"]) == (False, False)


def test_again_is_refused_with_a_key(command: Command, tmp_path: Path) -> None:
    path = sensors(tmp_path / "s.csv", range(1))
    assert command("load", path, *DATASET, "--again", "--key", "k").exit_code == 2
    assert command.json_lines("jobs", "list") == []
