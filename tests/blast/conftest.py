"""The stand of the session, and the results of the waves as a table at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.blast.run import Verdict
from tests.blast.stand import Stand, stand
from tests.conftest import new_data_dir

_PROPERTY = "blast"
Report = Callable[[str, Verdict], None]


@pytest.fixture(scope="session")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """The service under test."""
    with stand(new_data_dir(), tmp_path_factory.mktemp("blast")) as made:
        yield made


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Report:
    """Add a wave to the table at the end."""

    def reported(name: str, verdict: Verdict) -> None:
        record_property(_PROPERTY, json.dumps([name, str(verdict), verdict.felt]))

    return reported


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    found = {str(value) for one in reports for name, value in one.user_properties if name == _PROPERTY}
    if not found:
        return
    terminalreporter.section("blast")
    for name, verdict, felt in sorted(json.loads(value) for value in found):
        terminalreporter.write_line(f"{name}: {verdict}")
        for case, what in felt.items():
            terminalreporter.write_line(f"    {case}: {what}")
