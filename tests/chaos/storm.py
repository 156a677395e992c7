"""A long storm over the real stack: `python -m tests.chaos.storm --seed N --seconds S [--seeds K]`.

Clients submit job after job; every 20 to 30 s a new random set of faults is drawn, a quarter of the times none. Then
all faults end, the lag must return to zero, and the checker compares what the clients saw, the tables and the jobs.
The same seed draws the same plan. With an odd seed, workers apply most messages on the express path. Prints a line per
seed; exits with 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from tests.chaos import evidence, plan, trial
from tests.chaos.load import Gate, Load, Plan, draw_plans
from tests.chaos.plan import Period
from tests.chaos.rig import Rig, calm, rig
from tests.chaos.trial import Verdict
from tests.chaos.victims import Victims
from tests.conftest import new_data_dir

JOB_BATCHES = 25
PAUSE_S = 0.3
"""Between two batches of a client: about 15,000 records a second in all, so that a storm fits on two cores."""
ENDS_WITHIN_S = 120.0
REST_S = 4.0
"""The end of each period in which what was hurt may heal."""
HEAD = "| seed | seconds | sent | faults | processes ended | acknowledged | found | duplicates | lost | violations |"


async def run(running: Rig, seed: int, seconds: float) -> Verdict:
    """Run one storm."""
    began_s = time.monotonic()
    periods = plan.draw(seed, seconds)
    history = running.renew_history(f"storm-{seed}")
    running.victims = Victims(asyncio.get_running_loop())
    await asyncio.to_thread(evidence.clear, running.postgres)
    gate = Gate(pause_s=PAUSE_S)
    gate.healed.set()
    load = Load(running.address, history, gate)
    plans: list[Plan] = []
    over = asyncio.Event()

    async def client(number: int) -> None:
        chance = random.Random(f"{seed}/{number}")
        job = 0
        while not over.is_set():
            drawn = draw_plans(chance, f"s{seed}-j{job}", JOB_BATCHES, clients=number + 1)[number]
            plans.append(drawn)
            await load.one(drawn, ENDS_WITHIN_S)
            job += 1

    async def weather() -> None:
        for number, period in enumerate(periods):
            print(f"seed {seed}: {period}", flush=True)
            await _pass(running, period, random.Random(f"{seed}/{number}/weather"))
        over.set()

    async with trial.attended(running, plans):
        async with asyncio.TaskGroup() as tasks:
            for number in range(5):
                tasks.create_task(client(number))
            tasks.create_task(weather())
        await asyncio.to_thread(calm, running)
        await trial.catch_up(running, trial.CATCHES_UP_WITHIN_S)
    return await asyncio.to_thread(trial.conclude, running, began_s)


async def _pass(running: Rig, period: Period, chance: random.Random) -> None:
    """Let a period pass with its faults. A fault that had nothing to break is not a failure here."""
    ends_at_s = time.monotonic() + period.length_s
    ended_before = len(running.ended)
    with ExitStack() as stack:
        for fault in period.faults:
            running.history.note("rig", "fault", name=fault.name, phase="begun")
            try:
                await asyncio.to_thread(stack.enter_context, fault.hurt(running, chance))
            except Exception as error:  # noqa: BLE001 - a fault may find its victim gone; the storm continues
                running.history.note("rig", "fault", name=fault.name, phase=f"not begun: {error!r}")
        lasts_s = max([fault.dwell_s for fault in period.faults], default=0.0)
        lasts_s = max(lasts_s, chance.uniform(0.2, 0.6) * period.length_s) if period.faults else 0.0
        await asyncio.sleep(min(lasts_s, period.length_s))
        try:
            await asyncio.to_thread(stack.close)
        except Exception as error:  # noqa: BLE001 - the same
            running.history.note("rig", "fault", name="some", phase=f"not struck: {error!r}")
    ended = [who for who in running.ended[ended_before:] if who[1] > 0]
    if ended and {fault.part for fault in period.faults} == {plan.USER}:
        running.history.note("rig", "not_contained", names=[fault.name for fault in period.faults], ended=ended)
    await asyncio.to_thread(running.stack.up)
    await asyncio.sleep(max(0.0, ends_at_s - time.monotonic()))


def row(seed: int, verdict: Verdict) -> str:
    """Return a storm as a line of a table."""
    s = verdict.summary
    figures = (
        s.sent,
        s.faults,
        s.processes_ended,
        s.acknowledged,
        s.found,
        s.duplicates,
        s.lost,
        len(verdict.violations),
    )
    return f"| {seed} | {verdict.seconds:.0f} | {' | '.join(f'{figure:,}' for figure in figures)} |"


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.storm", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, one after the other")
    parser.add_argument("--seconds", type=float, default=300.0, help="length of each storm")
    parser.add_argument(
        "--logs", type=Path, default=Path("/var/tmp/bulkgrpc-storm"), help="where histories and logs go"
    )
    asked = parser.parse_args()
    # So that what was started is ended also then.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    broken = 0
    for seed in range(asked.seed, asked.seed + asked.seeds):
        logs = asked.logs / f"seed-{seed}-{time.time_ns() // 1_000_000_000}"  # no two runs in one history
        with rig(new_data_dir(), logs) as running:
            if seed % 2:
                running.disguise("eager_express")
            verdict = asyncio.run(run(running, seed, asked.seconds))
        broken += bool(verdict.violations)
        (logs / "verdict.json").write_text(json.dumps({"seed": seed, **asdict(verdict.summary)}))
        print(f"{HEAD}\n{row(seed, verdict)}", flush=True)
        for violation in verdict.violations[:50]:
            print(f"seed {seed}: {violation}", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
