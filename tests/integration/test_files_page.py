"""docs/files.md: what its tables say is what `load` does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bulkgrpc.cli.app import app
from bulkgrpc.cli.files import Format, format_of

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "files.md").read_text()


def section(title: str) -> list[list[str]]:
    """Return the cells of the table in a section of the page."""
    text = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return rows[2:]


def test_every_suffix_on_the_page_has_its_format() -> None:
    named = {suffix: row[0] for row in section("Formats") for suffix in re.findall(r"`(\.\w+)`", row[1])}
    assert {format_of(Path(f"a{suffix}")) for suffix in named} == set(Format)
    for suffix in (".gz", ".bz2", ".zst"):
        assert format_of(Path(f"a.csv{suffix}")) is Format.CSV


@pytest.mark.parametrize("command", [("load",), ("datasets", "infer")])
def test_every_option_of_reading_is_on_the_page(command: tuple[str, ...]) -> None:
    listed = {option for row in section("Options") for option in re.findall(r"`(--[a-z-]+)", row[0])}
    shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"}).stdout
    offered = set(re.findall(r"(?<!\w)--[a-z][a-z-]+", shown))
    only_load = {"--ignore-unknown-columns", "--missing-is-default", "--dry-run", "--on-bad-row", "--again"}
    assert (listed if command == ("load",) else listed - only_load) <= offered
