"""Runs the commands of a section of docs/clients.md."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs" / "clients.md"
WITHIN_S: Final = 900
"""A cold build loads everything: Go takes a minute and a half, Java half a minute. With caches each takes seconds."""
LOADERS: Final = [("Go", ("go",)), ("Java", ("java", "mvn")), ("TypeScript", ("node", "npm"))]
"""The sections with a loader, and what must be on the machine."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the commands need of the repository: builds leave files."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("gen", "node_modules", "target"))
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    return tmp_path


def commands(section: str) -> str:
    """Return the commands of a section."""
    text = PAGE.read_text().split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    return "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))


def require(section: str, tools: tuple[str, ...]) -> None:
    """Skip the test if a program is missing."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{section}: {', '.join(missing)} is not on this machine")


def executed(
    section: str, checkout: Path, server: str, change: tuple[str, str] = ("", "")
) -> subprocess.CompletedProcess[str]:
    """Run the commands of a section, with one text replaced by another at its last place."""
    programs = checkout / "bin"
    environment = {
        **os.environ,
        "GOBIN": str(programs),
        "GOFLAGS": "-modcacherw",
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SERVER": server,
    }
    before, text, after = commands(section).rpartition(change[0]) if change[0] else (commands(section), "", "")
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", before + (change[1] if text else "") + after],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
