from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkgrpc import model, positions
from bulkgrpc.model import JobCounts, JobKey, JobState
from bulkgrpc.positions import Outcome

JOB = "6ba7b810-9dad-51d1-80b4-00c04fd430c8"


def test_the_same_tenant_and_key_are_always_the_same_job() -> None:
    assert JobKey.derive("acme", "k1") == JobKey.derive("acme", "k1")


@given(st.tuples(st.text("ab", min_size=1), st.text("ab")), st.tuples(st.text("ab", min_size=1), st.text("ab")))
def test_other_tenants_or_keys_are_other_jobs(first: tuple[str, str], second: tuple[str, str]) -> None:
    assert (JobKey.derive(*first).job_id == JobKey.derive(*second).job_id) == (first == second)


def test_a_job_name_reads_back() -> None:
    key = JobKey.derive("acme.eu-1", "k1")
    assert JobKey.parse(key.name) == key


@pytest.mark.parametrize(
    "name",
    [
        "",
        "jobs/x",
        "tenants/a/jobs/",
        f"tenants/-a/jobs/{JOB}",
        f"tenants/a/b/jobs/{JOB}",
        "tenants/a/jobs/" + "-" * 36,
    ],
)
def test_what_is_no_job_name_is_refused(name: str) -> None:
    assert JobKey.parse(name) is None


@pytest.mark.parametrize(
    ("counts", "state"),
    [
        (JobCounts(), JobState.SUCCEEDED),
        (JobCounts(3, written=3), JobState.SUCCEEDED),
        (JobCounts(3, duplicate=3), JobState.SUCCEEDED),
        (JobCounts(3, written=1, rejected=2), JobState.PARTIALLY_SUCCEEDED),
        (JobCounts(3, duplicate=1, rejected=2), JobState.PARTIALLY_SUCCEEDED),
        (JobCounts(3, rejected=3), JobState.FAILED),
    ],
)
def test_a_sealed_job_ends_by_its_counts(counts: JobCounts, state: JobState) -> None:
    assert model.final_state(counts) is state


@pytest.mark.parametrize(
    ("ledger_offset", "ledger_epoch", "start", "epoch", "outcome"),
    [
        (5, 2, 5, 2, Outcome.NEXT),
        (6, 2, 5, 2, Outcome.REPLAY),
        (4, 2, 5, 2, Outcome.GAP),
        (5, 3, 5, 2, Outcome.FENCED),
        (6, 3, 5, 2, Outcome.FENCED),
        (5, 1, 5, 2, Outcome.FENCED),
    ],
)
def test_the_ledger_takes_only_the_next_span_of_its_owner(
    ledger_offset: int, ledger_epoch: int, start: int, epoch: int, outcome: Outcome
) -> None:
    assert positions.may_apply_span(ledger_offset, ledger_epoch, start, epoch) is outcome
    restarted = outcome if outcome is Outcome.FENCED else Outcome.RESTARTED
    assert positions.may_apply_span(ledger_offset, ledger_epoch, start, epoch, same_server=False) is restarted


@given(st.integers(0, 9), st.integers(0, 9))
def test_a_lane_takes_only_its_next_batch(expected: int, sequence: int) -> None:
    outcome = positions.may_apply_batch(expected, sequence)
    assert outcome is (Outcome.NEXT if sequence == expected else Outcome.REPLAY if sequence < expected else Outcome.GAP)
