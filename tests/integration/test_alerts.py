"""The rules for Prometheus, and the pages of the runbook to which its alerts lead."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bulkgrpc.cli.app import app
from bulkgrpc.metrics import REGISTRY, Kind
from tests.support.promtool import TIMEOUT_S, promtool

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "prometheus" / "bulkgrpc.rules.yaml"
CASES = RULES.with_name("bulkgrpc.tests.yaml")
RUNBOOK = ROOT / "docs" / "runbook"
HEADINGS = ["What you see", "Which command shows it", "What to do", "How to know that it is over"]
GROUPS = {"jobs", "datasets", "dlq", "ledger"}
PAGES = sorted(path for path in RUNBOOK.glob("*.md") if path.name != "README.md")


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = promtool(tmp_path_factory.mktemp("prometheus"))
    if found is None:
        pytest.skip("promtool is not installed, and apt cannot download Debian's package prometheus")
    return found


@pytest.mark.parametrize(("command", "file"), [("check", RULES), ("test", CASES)])
def test_the_rules_are_valid_and_each_alert_fires_when_it_must(tool: Path, command: str, file: Path) -> None:
    done = subprocess.run(
        [tool, command, "rules", file], check=False, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr


def alerts() -> set[str]:
    return set(re.findall(r"- alert: (\w+)", RULES.read_text()))


def test_every_alert_has_a_case_that_fires_one_that_does_not_and_a_page() -> None:
    cases = CASES.read_text()
    for alert in alerts():
        assert f"name: {alert} fires\n" in cases
        assert f"name: {alert} does not fire\n" in cases
    named = {path: re.findall(r"^Alert `(\w+)`\.$", path.read_text(), re.MULTILINE) for path in PAGES}
    assert {alert for found in named.values() for alert in found} == alerts()
    assert {ROOT / page for page in re.findall(r"runbook: (\S+)", RULES.read_text())} == set(PAGES)
    index = (RUNBOOK / "README.md").read_text()
    assert all(f"`{alert}`" in index for alert in alerts())


def test_the_rules_use_metrics_that_there_are() -> None:
    suffixes = {Kind.HISTOGRAM: ("_bucket", "_count", "_sum")}
    exported = {one.prometheus + suffix for one in REGISTRY for suffix in suffixes.get(one.kind, ("",))}
    used = set(re.findall(r"\bbulkgrpc_\w+", RULES.read_text()))
    assert used
    assert used <= exported


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_says_what_to_see_and_do_with_commands_that_there_are(page: Path) -> None:
    text = page.read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS
    lines = re.findall(r"^bulkgrpc (.+)$", text, re.MULTILINE) + re.findall(r"`bulkgrpc ([^`]+)`", text)
    assert lines
    for line in lines:
        first, *rest = line.split()
        command = [first, *rest[: 1 if first in GROUPS else 0]]
        asked = CliRunner().invoke(app, [*command, "--help"])
        assert asked.exit_code == 0, asked.output
        for option in re.findall(r"--[a-z-]+", line):
            assert option in asked.output
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (page.parent / link).exists(), link
