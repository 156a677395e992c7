"""The checker alone, on synthetic evidence; and the plan of a storm: the same seed gives the same plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bulkgrpc.promises import PROMISES
from tests.chaos import plan
from tests.chaos.checker import check
from tests.chaos.evidence import Evidence, JobReport, Move, job_id
from tests.chaos.history import Event

JOB = {"key": "k", "base": 0, "batches": 3, "rows": 1000, "bad": 0}
REPORT = JobReport(state=3, accepted=3000, written=3000, duplicate=0, rejected=0, expired=0, reported=0)
GOOD = Evidence(
    events=[
        Event(0, "c", "submit", JOB),
        Event(1, "c", "sent", {"key": "k", "batches": 3}),
        Event(2, "c", "acknowledged", {"key": "k", "batches": 2}),
        Event(3, "c", "sealed", {"key": "k"}),
        Event(4, "rig", "caught_up", {"after_s": 0}),
    ],
    batches={("c", number): (1000, 1000) for number in range(3)},
    jobs={job_id("c", "k"): REPORT},
    moves=[Move(0, 0, 2, 1), Move(0, 2, 4, 1)],
)


def names(evidence: Evidence) -> set[str]:
    return {violation.promise.name for violation in check(evidence)}


def read(at_s: float, state: int, written: int, found: int, next_offset: int = 4) -> Event:
    return Event(at_s, "reader", "read", {"jobs": {"c/k": [state, written, found]}, "offsets": {"0": [next_offset, 1]}})


def job(at_s: float, state: int, accepted: int = 3000, rejected: int = 0) -> Event:
    counts = {"accepted": accepted, "written": 3000, "duplicate": 0, "rejected": rejected, "expired": 0}
    return Event(at_s, "c", "job", {"key": "k", "state": state, **counts})


def without(number: int) -> dict[tuple[str, int], tuple[int, int]]:
    return {key: value for key, value in GOOD.batches.items() if key[1] != number}


def test_good_evidence_is_good() -> None:
    assert not names(GOOD)
    assert not names(replace(GOOD, events=[*GOOD.events, job(5, 2), job(6, 3), job(7, 3)]))


def test_a_restore_takes_an_end_back_until_the_job_ends_again_in_the_same_way() -> None:
    restored = Event(6, "rig", "restored", {})
    seen = [*GOOD.events, read(4.5, 3, 3000, 3000), job(5, 3)]
    again = [read(6.5, 1, 1000, 1000, 2), job(6.6, 1), read(6.7, 2, 2000, 2000), job(6.8, 2), job(7, 3)]
    assert not names(replace(GOOD, events=[*seen, restored, *again]))
    assert names(replace(GOOD, events=[*seen, *again])) == {"P3", "P5"}
    # Nothing more: not another end, not a second way back, not a loss.
    assert names(replace(GOOD, events=[*seen, restored, job(7, 4)])) == {"P3"}
    assert names(replace(GOOD, events=[*seen, restored, *again, read(7.5, 3, 3000, 3000), read(8, 2, 2000, 2000)])) == {
        "P3"
    }
    assert names(replace(GOOD, events=[*seen, restored, *again, read(8, 3, 3000, 3000, 2)])) == {"P5"}
    assert "P1" in names(replace(GOOD, events=[*seen, restored, *again], batches=without(1)))


def test_only_accepted_and_expired_grow_together_once_a_job_has_ended_before_its_seal() -> None:
    def of(**now: int) -> Evidence:
        failed = replace(REPORT, state=5, failure_reason="LOST_IN_KAFKA: …", **now)
        return replace(GOOD, events=[*GOOD.events, job(5, 5)], jobs={job_id("c", "k"): failed})

    assert "P3" not in names(of(accepted=4000, expired=1000))
    assert "P3" in names(of(accepted=4000))
    assert "P3" in names(of(accepted=4000, expired=1000, rejected=1))


@pytest.mark.parametrize(
    ("promise", "evidence"),
    [
        ("P1", replace(GOOD, batches=without(1))),
        ("P1", replace(GOOD, jobs={})),
        ("P2", replace(GOOD, batches={**GOOD.batches, ("c", 1): (2000, 1000)})),
        ("P2", replace(GOOD, batches={**GOOD.batches, ("c", 1): (999, 999)})),
        ("P2", replace(GOOD, batches={**GOOD.batches, ("c", 7): (1000, 1000)})),
        ("P3", replace(GOOD, jobs={job_id("c", "k"): replace(REPORT, written=2000)})),
        ("P3", replace(GOOD, events=[*GOOD.events, read(5, 3, 3000, 2999)])),
        ("P3", replace(GOOD, events=[*GOOD.events, read(5, 3, 3000, 3000), read(6, 2, 2000, 2000)])),
        ("P3", replace(GOOD, events=[*GOOD.events, job(5, 3), job(6, 4)])),
        ("P3", replace(GOOD, events=[*GOOD.events, job(5, 3), job(6, 3, accepted=4000)])),
        ("P3", replace(GOOD, events=[*GOOD.events, job(5, 4)])),
        ("P3", replace(GOOD, events=[*GOOD.events, job(5, 3, rejected=1)])),
        ("P4", replace(GOOD, batches=without(0))),
        ("P5", replace(GOOD, moves=[*GOOD.moves, Move(0, 4, 3, 1)])),
        ("P5", replace(GOOD, moves=[*GOOD.moves, Move(0, 5, 6, 1)])),
        ("P5", replace(GOOD, events=[*GOOD.events, read(5, 3, 3000, 3000), read(6, 3, 3000, 3000, 3)])),
        ("P6", replace(GOOD, jobs={job_id("c", "k"): replace(REPORT, rejected=1)})),
        ("P8", replace(GOOD, events=GOOD.events[:-1])),
        ("P8", replace(GOOD, jobs={job_id("c", "k"): replace(REPORT, state=2)})),
        (
            "P9",
            replace(
                GOOD,
                batches=without(2),
                events=[*GOOD.events, Event(5, "rig", "fault", {"name": "retention", "phase": "begun"})],
            ),
        ),
        (
            "P11",
            replace(
                GOOD,
                batches=without(2),
                events=[*GOOD.events, Event(5, "rig", "fault", {"name": "topic replaced", "phase": "begun"})],
            ),
        ),
        (
            "P11",
            replace(
                GOOD,
                batches=without(2),
                events=[*GOOD.events, Event(5, "rig", "fault", {"name": "batch lost", "phase": "begun"})],
            ),
        ),
    ],
)
def test_what_falsifies_a_promise_is_seen(promise: str, evidence: Evidence) -> None:
    assert promise in names(evidence)


def test_a_job_that_says_that_it_lost_batches_accounts_for_them() -> None:
    def of(reason: str) -> Evidence:
        failed = replace(REPORT, state=5, accepted=2000, written=2000, failure_reason=reason)
        return replace(GOOD, batches=without(2), jobs={job_id("c", "k"): failed})

    assert not names(of("LOST_IN_KAFKA: Kafka lost some; it continues at batch 2"))
    assert "P1" in names(of("LOST_IN_KAFKA: Kafka lost some; it continues at batch 3"))
    assert "P1" in names(of("LOST_IN_KAFKA: …"))
    assert "P1" in names(of("other; it continues at batch 2"))


def test_a_loss_is_no_end() -> None:
    lost = job(5, 5)
    lost.data["lost"] = True
    assert not names(replace(GOOD, events=[*GOOD.events, lost, job(6, 1), job(7, 3)]))
    assert "P3" in names(replace(GOOD, events=[*GOOD.events, job(5, 5), job(6, 1), job(7, 3)]))


def test_a_ledger_that_is_set_back_goes_back_once_even_if_a_reader_was_quicker() -> None:
    replay = Event(6, "rig", "fault", {"name": "replay", "phase": "ledger set back"})
    reads = [read(5, 3, 3000, 3000), replay, read(7, 3, 3000, 3000), read(8, 3, 3000, 3000, next_offset=0)]
    once = replace(GOOD, events=[*GOOD.events, *reads])
    assert not names(once)
    again = [read(9, 3, 3000, 3000), read(10, 3, 3000, 3000, next_offset=0)]
    assert "P5" in names(replace(once, events=[*once.events, *again]))


def test_batches_are_in_order_on_each_lane() -> None:
    events = [replace(GOOD.events[0], data={**JOB, "lanes": 2}), *GOOD.events[1:]]
    several = replace(GOOD, events=events)
    assert not names(several)
    assert "P4" in names(replace(several, batches=without(0)))
    assert "P4" not in names(replace(several, batches=without(1)))


def test_a_batch_of_unknown_outcome_may_be_there_or_not() -> None:
    broke_off = [event for event in GOOD.events if event.kind != "sealed"]
    report = {job_id("c", "k"): replace(REPORT, state=1, accepted=2000, written=2000)}
    assert not names(replace(GOOD, events=broke_off, batches=without(2), jobs=report))
    assert not names(replace(GOOD, events=broke_off))


def test_evidence_is_read_as_it_was_written(tmp_path: Path) -> None:
    GOOD.write(tmp_path / "evidence.json")
    assert Evidence.load(tmp_path / "evidence.json") == GOOD


def test_the_same_seed_draws_the_same_plan() -> None:
    assert [str(period) for period in plan.draw(7, 300)] == [str(period) for period in plan.draw(7, 300)]
    assert plan.draw(7, 300) != plan.draw(8, 300)


def test_every_promise_is_on_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guarantees.md").read_text()
    assert all(f"| {promise.name} |" in page for promise in PROMISES)


def test_every_fault_of_a_storm_is_drawn_by_some_seed() -> None:
    drawn = {fault.name for seed in range(1000) for period in plan.draw(seed, 300) for fault in period.faults}
    assert drawn == set(plan.STORM_FAULTS) - plan.NOT_IN_STORMS
