"""docs/tables.md: its commands load rows into the table that it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.integration.service_values import Parts
from tests.integration.test_existing_tables import execute
from tests.support.processes import Service

pytest_plugins = ["tests.integration.service_parts"]

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tables.md").read_text()
DEADLINE_S = 120


def block(language: str) -> str:
    """The first block of a language on the page, with a table that no other test has."""
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1].replace("sensor_readings", "page_readings")


def test_the_commands_of_the_page_run_as_they_stand(running: Service, parts: Parts, tmp_path: Path) -> None:
    execute(parts, block("sql"))
    execute(parts, "INSERT INTO page_readings VALUES ('s0', 1, '2026-01-01')")
    # The only line that depends on the reader.
    script, replaced = re.subn(r"^export BULKGRPC_POSTGRES=.*$", "", block("sh"), flags=re.MULTILINE)
    assert replaced == 1
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"BULKGRPC_SERVER": running.address, "BULKGRPC_POSTGRES": parts.postgres, "PATH": path, "COLUMNS": "80"}
    run = subprocess.run(
        ["bash", "-c", "set -e\n" + script],
        cwd=tmp_path,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    # Where nothing is a terminal, tables are as wide as their text.
    assert "bound to public.page_readings, which is not changed" in run.stdout
    rows = parts.rows("SELECT sensor_id, value FROM page_readings ORDER BY sensor_id")
    assert rows == [("s0", 1), ("s1", 20.5)]
