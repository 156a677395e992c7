"""Without one of the protections of containment the checker turns red: it must be able to fail."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bulkgrpc.datasets.definition import ConflictPolicy
from tests.blast.catalog import FAULTS, Case
from tests.blast.mutants import MUTANTS
from tests.blast.records import Kind
from tests.blast.run import Times, Wave
from tests.blast.stand import Stand

TIMES = Times(hold_s=4.0, felt_within_s=5.0, drained_within_s=12.0)
LONG = Times(hold_s=25.0, felt_within_s=5.0, drained_within_s=60.0, innocent_s_max=10.0)
"""Long enough for a drain to give a slice the most time."""
RED: dict[str, tuple[str, ConflictPolicy, str, Kind]] = {
    "unchecked_table": ("bigint to double", "update", "wrong", "created"),
    "unchecked_key": ("primary key dropped", "ignore", "rows of the key", "existing"),
    "skipped_as_written": ("trigger skips rows", "ignore", "skipped", "created"),
    "parked_and_lost": ("rename column", "update", "was sealed and is", "created"),
    "overtaking": ("rename column", "update", "wrong row|was sealed and is", "created"),
    "never_forgotten": ("rename column", "ignore", "still parked", "created"),
    "never_tried": ("rename column", "reject", "was sealed and is", "created"),
    "greedy_drain": ("trigger waits for a lock", "ignore", "an innocent job took", "created"),
    "fragile": ("rename column", "ignore", "exited with", "created"),
}
"""By mutant: the fault on which the checker turns red, the dataset's policy, a part of what it says, and its kind."""


@pytest.fixture
def disguised(standing: Stand, request: pytest.FixtureRequest) -> Iterator[Stand]:
    """The service, its workers without a protection."""
    plain = [(worker, worker.module, worker.arguments) for worker in standing.running.workers]
    for worker, module, arguments in plain:
        worker.stop()
        worker.module, worker.arguments = "tests.blast.mutants", (request.param, module, *arguments)
        worker.start()
    yield standing
    for worker, module, arguments in plain:
        worker.module, worker.arguments = module, arguments
    standing.start_over()


def test_every_mutant_has_a_fault() -> None:
    assert RED.keys() == MUTANTS.keys()


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("disguised", "fault", "policy", "what", "kind"), [(m, *red) for m, red in RED.items()], indirect=["disguised"]
)
async def test_without_a_protection_the_checker_turns_red(
    disguised: Stand, fault: str, policy: ConflictPolicy, what: str, kind: Kind, request: pytest.FixtureRequest
) -> None:
    mutant = request.node.callspec.params["disguised"]
    times = LONG if mutant == "greedy_drain" else TIMES
    verdict = await Wave(disguised, [Case(FAULTS[fault], policy, kind=kind)], f"m{list(RED).index(mutant)}", times).go()
    found = "\n".join(map(str, verdict.violations))
    assert any(part in found for part in what.split("|")), found


@pytest.mark.timeout(240)
async def test_with_all_protections_no_innocent_job_waits_for_a_drain(standing: Stand) -> None:
    fault, policy, *_ = RED["greedy_drain"]
    verdict = await Wave(standing, [Case(FAULTS[fault], policy)], "m", LONG).go()
    assert not verdict.violations
