"""The commands of the README run unchanged."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from bulkgrpc.stack.ports import choose_free

ROOT = Path(__file__).resolve().parent.parent.parent


def block(heading: str) -> str:
    """The first shell block below a heading of the README."""
    section = (ROOT / "README.md").read_text().split(f"## {heading}", 1)[1]
    found = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_commands_to_try_by_hand_load_a_file(data_dir: Path, tmp_path: Path) -> None:
    port = choose_free()
    environment = {
        **os.environ,
        "BULKGRPC_DATA_DIR": str(data_dir),
        "BULKGRPC_LISTEN": f"127.0.0.1:{port}",
        "BULKGRPC_SERVER": f"127.0.0.1:{port}",
        "COLUMNS": "200",
    }
    # As for a reader: the virtual environment and the protos are below the directory in which the commands run.
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    (tmp_path / "proto").symlink_to(ROOT / "proto")
    # A reader is slower than a script: on a busy machine the server needs longer to start than a command waits for it.
    serves = f"until (exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null; do sleep 0.1; done\n"
    register = ".venv/bin/bulkgrpc datasets register"
    script = "set -e\n" + block("Try it by hand").replace("bulkgrpc jobs list", "bulkgrpc jobs list | tee jobs.txt")
    assert script.count(register) == 1
    script = script.replace(register, serves + register)
    run = subprocess.Popen(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        # The server and the worker keep running in the background and keep the pipe open: wait for the shell only.
        code = run.wait(120)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        output, _ = run.communicate(timeout=10)
    assert code == 0, output
    assert "SUCCEEDED" in output
    assert "sensor_readings" in (tmp_path / "jobs.txt").read_text()
