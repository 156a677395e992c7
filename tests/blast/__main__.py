"""`python -m tests.blast [--fault NAME…]`: run faults by hand, one after the other or several at once; print a table.

Exits with 1 if a promise was broken. After a wave with violations the stand is reset, so that each is judged alone.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg

from bulkgrpc.client import BulkError
from tests.blast import catalog
from tests.blast.catalog import FAULTS, PAIRS
from tests.blast.checker import Violation
from tests.blast.run import Times, Verdict, Wave
from tests.blast.stand import stand
from tests.conftest import new_data_dir


def main() -> int:
    """Run the command."""
    asked = _parser().parse_args()
    if asked.list:
        print("\n".join(f"{fault.name:<50} {fault.effect.name}" for fault in FAULTS.values()))
        return 0
    chosen = [fault for name, fault in FAULTS.items() if _is_asked(name, asked.fault)]
    cases = catalog.every_case(chosen) if asked.every else catalog.short_cases(chosen, slow=bool(asked.fault))
    cases += [case for case in catalog.kind_cases(every=asked.every) if _is_asked(case.fault.name, asked.fault)]
    if asked.kind:
        cases = [case for case in cases if case.kind in asked.kind]
    # So that what was started is ended also then.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    logs = asked.logs / f"{time.time_ns() // 1_000_000_000}"
    times = Times(asked.hold, asked.felt, asked.drain)
    broken = 0
    with stand(new_data_dir(), logs) as running:
        for number, wave in enumerate(catalog.waves(cases, asked.at_once)):
            if number < asked.from_wave:
                continue
            names = "; ".join(map(str, wave))
            try:
                baseline = None
                if asked.paired:
                    baseline = asyncio.run(Wave(running, wave, f"p{number}", times, faulty=False).go())
                    print(f"-- without: {baseline}", flush=True)
                verdict = asyncio.run(Wave(running, wave, f"w{number}", times).go())
                if baseline is not None and not wave[0].fault.whole:
                    verdict.violations.extend(_delayed(baseline, verdict, asked.delay))
            except (TimeoutError, AssertionError, BulkError, psycopg.Error) as error:
                print(f"== {names}\n   ! the wave did not end: {error!r}; {running.note_exits()}", flush=True)
                violated = True
            else:
                _print(f"{number}: {names}", verdict)
                violated = bool(verdict.violations)
            broken += violated
            if violated:
                running.start_over()
    return 1 if broken else 0


def _is_asked(name: str, parts: Sequence[str]) -> bool:
    return not parts or any(part in name for part in parts)


def _delayed(baseline: Verdict, verdict: Verdict, delay_max_s: float) -> Iterator[Violation]:
    """Compare the slowest innocent jobs with and without the faults."""
    delay_s = verdict.latencies_s[-1] - baseline.latencies_s[-1]
    if delay_s > delay_max_s:
        yield Violation("innocents", f"an innocent job ended {delay_s:.1f} s later than any without the faults")


def _print(names: str, verdict: Verdict) -> None:
    print(f"== {names}\n   {verdict}", flush=True)
    for case, what in verdict.felt.items():
        print(f"   . {case}: {what}", flush=True)
    for violation in verdict.violations:
        print(f"   ! {violation}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.blast", description="Run faults of containment.")
    parser.add_argument("--fault", nargs="*", default=[], help="parts of names; default: all")
    parser.add_argument("--kind", nargs="*", default=[], help="created, append, deletes, existing; default: all")
    parser.add_argument("--list", action="store_true", help="print the names of all faults")
    parser.add_argument("--every", action="store_true", help="every policy, atomic or not; default: each fault once")
    parser.add_argument("--paired", action="store_true", help="run each wave without its faults too, first")
    parser.add_argument("--from-wave", type=int, default=0, help="leave out the waves before this one")
    parser.add_argument(
        "--delay", type=float, default=2.0, help="seconds by which the faults may delay innocent jobs, if --paired"
    )
    parser.add_argument("--hold", type=float, default=6.0, help="seconds that each fault lasts")
    parser.add_argument(
        "--felt", type=float, default=15.0, help="more seconds, until each fault that does not block was met"
    )
    parser.add_argument("--drain", type=float, default=60.0, help="seconds until every job has to have ended")
    parser.add_argument("--at-once", type=int, default=PAIRS, help="faults that run together")
    parser.add_argument("--logs", type=Path, default=Path("/var/tmp/bulkgrpc-blast"), help="where logs go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
