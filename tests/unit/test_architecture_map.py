"""The pages name files, symbols and log events of the code: each of them exists.

A file is written as its path from the root of the repository, a folder ends with `/`, a symbol follows its file:
`bulkgrpc/model.py:JobKey.derive`. In SQL files a symbol is the name of a statement.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkgrpc.events import Event
from bulkgrpc.rejections import RejectionCode

ROOT = Path(__file__).resolve().parent.parent.parent
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
REFERENCE = re.compile(
    r"(?<![\w./*\x22-])(?P<path>(?:bulkgrpc|workers|proto|tests|tools|docs)/(?:[\w.-]+/)*(?:[\w-]+\.[a-z]+)?)"
    r"(?::(?P<symbol>[A-Za-z_][\w.]*\w))?"
)
LINK = re.compile(r"\]\((?P<target>[^)#:\s]+)(?:#[^)]*)?\)")
EXTENSIONS = {
    "a column type", "a rejection code", "a conflict policy", "a metric", "a setting", "a front door", "a CLI command",
    "a write mode",
}  # fmt: skip


def references(page: Path) -> Iterator[tuple[str, str]]:
    """Path and symbol of each reference on a page; the symbol is empty for a file or a folder."""
    for found in REFERENCE.finditer(page.read_text()):
        yield found["path"], found["symbol"] or ""


def symbols(path: Path) -> set[str]:
    """The names that a file defines: of Python the module's, and `Class.member`; of SQL the statements'."""
    if path.suffix == ".sql":
        return set(re.findall(r"^-- name: (\w+)", path.read_text(), re.MULTILINE))
    return set(defined(ast.parse(path.read_text()).body, ""))


def defined(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    """The names that statements bind at module or class level, each after `prefix`."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name
        elif isinstance(node, ast.ClassDef):
            yield prefix + node.name
            yield from defined(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_and_symbol_that_a_page_names_exists(page: Path) -> None:
    missing = []
    for name, symbol in references(page):
        path = ROOT / name
        if not path.exists() or (symbol and symbol not in symbols(path)):
            missing.append(f"{name}:{symbol}" if symbol else name)
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    targets = [found["target"] for found in LINK.finditer(page.read_text())]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_a_reference_to_what_does_not_exist_is_found() -> None:
    assert "JobKey.derive" in symbols(ROOT / "bulkgrpc" / "model.py")
    assert "JobKey.absent" not in symbols(ROOT / "bulkgrpc" / "model.py")
    found = REFERENCE.search("see `bulkgrpc/model.py:JobKey.absent`.")
    assert found is not None
    assert found.groups() == ("bulkgrpc/model.py", "JobKey.absent")


def test_the_path_of_a_batch_and_the_file_map_name_symbols() -> None:
    sections = dict(
        section.split("\n", 1) for section in ARCHITECTURE.read_text().split("\n## ")[1:] if "\n" in section
    )
    for name, at_least in (("The path of a batch", 20), ("File map", 30)):
        assert len(list(REFERENCE.finditer(sections[name]))) >= at_least
    rows = [line for line in sections["File map"].splitlines() if line.startswith("| ")][1:]
    assert [row for row in rows if REFERENCE.search(row) is None] == []


def test_the_page_says_what_to_change_for_every_extension() -> None:
    section = ARCHITECTURE.read_text().split("\n## To add …", 1)[1].split("\n## ", 1)[0]
    rows = {row.split("|")[1].strip(): row for row in section.splitlines() if row.startswith("| ")}
    assert rows.keys() >= EXTENSIONS
    assert all(REFERENCE.search(rows[name]) for name in EXTENSIONS)


def test_every_log_event_that_a_page_names_is_registered() -> None:
    rows = (ROOT / "docs" / "failure-modes.md").read_text().split("\n## ", 1)[0].splitlines()
    seen = {name for row in rows if row.startswith("| ") for name in re.findall(r"`([a-z_]+)`", row.split("|")[2])}
    for page in PAGES:
        seen |= set(re.findall(r"`([a-z_]+)`\s+in\s+the\s+(?:worker|server)'s\s+log", page.read_text()))
    assert len(seen) >= 5
    assert seen <= {event.value for event in Event}


def test_the_page_about_jobs_lists_every_rejection_code() -> None:
    section = (ROOT / "docs" / "jobs.md").read_text().split("\n## Rejections", 1)[1].split("\n## ", 1)[0]
    assert set(re.findall(r"^\| `([A-Z_]+)`", section, re.MULTILINE)) == set(RejectionCode)
