"""docs/clients.md: the commands of each section run as they are written, where their tool chain is on the machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.snippets import PAGE, WITHIN_S, checkout, executed, require
from tests.integration.service_values import Parts
from tests.support.processes import Service

pytest_plugins = ["tests.integration.service_parts"]

__all__ = ["checkout"]
pytestmark = pytest.mark.timeout(WITHIN_S)


def run(section: str, checkout: Path, running: Service, *tools: str) -> str:
    require(section, tools)
    done = executed(section, checkout, running.address)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_preface_registers_the_dataset(running: Service, checkout: Path) -> None:
    (command,) = re.findall(r"```sh\n(.*?)```", PAGE.read_text().split("\n## ", 1)[0], re.DOTALL)
    environment = {
        **os.environ,
        "SERVER": running.address,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    subprocess.run(["bash", "-euc", command], cwd=checkout, env=environment, check=True, timeout=60)


def test_the_python_snippet_lists_the_datasets(running: Service, tmp_path: Path) -> None:
    text = PAGE.read_text().split("\n## Python", 1)[1].split("\n## ", 1)[0]
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "token").write_text("a-token-that-this-server-does-not-need\n")
    environment = {**os.environ, "SERVER": running.address, "TOKEN_FILE": str(tmp_path / "token")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert "sensor_readings" in done.stdout


@pytest.mark.parametrize(
    ("section", "tenant", "tools"),
    [("Go", "go", ("go",)), ("Java", "java", ("java", "mvn")), ("TypeScript", "node", ("node", "npm"))],
)
def test_a_loader_writes_each_row_once_however_often_it_is_run(
    running: Service, checkout: Path, parts: Parts, section: str, tenant: str, tools: tuple[str, ...]
) -> None:
    assert re.search(r"SUCCEEDED, 10000 written, 0 duplicate", run(section, checkout, running, *tools))
    # The same key is the same job.
    assert re.search(r"SUCCEEDED, 10000 written, 0 duplicate", run(section, checkout, running, *tools))
    rows = parts.rows("SELECT count(*), sum(value) FROM sensor_readings WHERE tenant = %s", tenant)
    assert rows == [(10_000, sum(row / 2 for row in range(10_000)))]


def test_grpcurl_lists_describes_and_submits(running: Service, checkout: Path, parts: Parts) -> None:
    said = run("grpcurl", checkout, running, "go")
    assert "bulkgrpc.v1.IngestService\n" in said
    assert "rpc StreamRecords ( stream .bulkgrpc.v1.StreamRecordsRequest )" in said
    assert '"sealed"' in said
    assert parts.rows("SELECT sensor_id, value FROM sensor_readings WHERE tenant = 'curl'") == [("S1", 0.5)]


def test_ghz_submits_jobs(running: Service, checkout: Path) -> None:
    assert re.search(r"\[OK\]\s+20 responses", run("ghz", checkout, running, "go"))
