"""The rigs, and the results of the trials as a table at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict

import pytest

from tests.chaos.rig import Rig, rig
from tests.chaos.trial import Verdict
from tests.conftest import new_data_dir

HEAD = ("trial", "seed", "seconds", "sent", "acknowledged", "found", "duplicates", "lost", "violations")
_PROPERTY = "trial"
Record = Callable[[str, int, Verdict], None]


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A service for faults; each fault repairs what it breaks."""
    with rig(new_data_dir(), tmp_path_factory.mktemp("chaos")) as made:
        yield made


@pytest.fixture(scope="module")
def torn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A service of the module's own, for faults that cannot be repaired."""
    with rig(new_data_dir(), tmp_path_factory.mktemp("torn")) as made:
        yield made


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Record:
    """Add a trial's verdict to the table at the end."""

    def add(name: str, seed: int, verdict: Verdict) -> None:
        figures = asdict(verdict.summary)
        counts = [figures[column] for column in HEAD[3:-1]]
        record_property(
            _PROPERTY, json.dumps([name, seed, round(verdict.seconds, 1), *counts, len(verdict.violations)])
        )

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    found = [
        json.loads(str(value)) for report in reports for name, value in report.user_properties if name == _PROPERTY
    ]
    # A property comes with each phase's report.
    rows = sorted({json.dumps(row): row for row in found}.values())
    if not rows:
        return
    terminalreporter.section("trials")
    for name, *figures in [HEAD, *rows]:
        line = "".join(f"{figure:>13,}" if isinstance(figure, int | float) else f"{figure:>13}" for figure in figures)
        terminalreporter.write_line(f"{name:<48}{line}")
