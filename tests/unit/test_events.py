"""The registry of log events: every event that the code logs is in it, and nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from bulkgrpc.events import Event

ROOT = Path(__file__).parents[2]
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
LOGGERS = {"log", "_log", "logger", "_logger"}


def logged(source: str) -> Iterator[tuple[int, object]]:
    """Yield line and name of every event that a module logs; the name is None if it is not a literal."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in LEVELS
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id in LOGGERS
        ):
            first = node.args[0] if node.args else None
            yield node.lineno, first.value if isinstance(first, ast.Constant) else None


def everywhere() -> Iterator[tuple[str, object]]:
    for package in ("bulkgrpc", "workers"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for line, name in logged(path.read_text()):
                yield f"{path.relative_to(ROOT)}:{line}", name


def test_every_event_that_is_logged_is_registered() -> None:
    assert {place: name for place, name in everywhere() if name not in set(Event)} == {}


def test_every_registered_event_is_logged() -> None:
    assert {str(event) for event in Event} - {name for _, name in everywhere()} == set()


def test_loggers_have_a_name_that_this_test_knows() -> None:
    made = re.compile(r"^(\w+)(?:: [^=]+)? = structlog\.get_logger", re.MULTILINE)
    sources = [path.read_text() for package in ("bulkgrpc", "workers") for path in (ROOT / package).rglob("*.py")]
    assert {name for source in sources for name in made.findall(source)} <= LOGGERS


def test_events_are_snake_case_with_a_meaning() -> None:
    for event in Event:
        assert event.name == event.value.upper()
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", event)
        assert event.meaning.endswith(".")


def test_an_unregistered_event_and_a_computed_one_are_found() -> None:
    source = 'log.info("unheard_of")\n_log.error(f"{reason}")\nlog.bind(x=1)\n'
    assert list(logged(source)) == [(1, "unheard_of"), (2, None)]
