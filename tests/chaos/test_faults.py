"""Every fault once, in the middle of a load of over 100,000 records, from a printed seed: no promise is broken."""

from __future__ import annotations

import os
import zlib

import pytest

from tests.chaos import plan, trial
from tests.chaos.conftest import Record
from tests.chaos.rig import Rig

SEED = int(os.environ.get("BULKGRPC_CHAOS_SEED", "1"))
RECORDS_MIN = 100_000


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", plan.FAULTS)
async def test_no_promise_is_broken_by(running: Rig, record: Record, name: str) -> None:
    if name == "postgres: disk full" and os.geteuid() != 0:
        pytest.skip("a small disk is mounted by root only")
    fault = plan.FAULTS[name]
    verdict = await trial.run(running, f"t{zlib.crc32(name.encode()):08x}", fault, SEED)
    record(name, SEED, verdict)
    assert not verdict.violations, "\n".join(map(str, verdict.violations[:20]))
    assert verdict.summary.acknowledged >= RECORDS_MIN
