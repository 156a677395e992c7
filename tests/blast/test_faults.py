"""Every fault once, several at a time: no process ends, no value is wrong, and after the repair no row is missing.

BULKGRPC_BLAST_HOLD_S: how long faults last. `make blast` runs them all for longer: every policy, atomic or not, each
wave beside a run without faults.
"""

from __future__ import annotations

import os

import pytest

from tests.blast import catalog
from tests.blast.catalog import FAULTS
from tests.blast.conftest import Report
from tests.blast.run import Times, Wave
from tests.blast.stand import Stand

TIMES = Times(hold_s=float(os.environ.get("BULKGRPC_BLAST_HOLD_S", "3")), felt_within_s=45)
WAVES = list(catalog.waves([*catalog.short_cases(FAULTS.values()), *catalog.kind_cases()]))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("number", range(len(WAVES)), ids=[str(wave[0]) for wave in WAVES])
async def test_what_users_do_stays_their_own(standing: Stand, report: Report, number: int) -> None:
    verdict = await Wave(standing, WAVES[number], f"w{number}", TIMES).go()
    report(f"wave {number}", verdict)
    if verdict.violations:
        standing.start_over()
    assert not verdict.violations, "\n".join(map(str, verdict.violations))


def test_every_fault_can_be_applied_by_this_user() -> None:
    if left_out := catalog.left_out(FAULTS.values()):
        pytest.skip(f"only root can apply: {', '.join(left_out)}")
