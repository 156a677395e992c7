"""Measures ways of writing side by side: workers, bare COPY and staging, in rounds, each from the same state.

All cases share one topic and one pair of workers: each measurement is a drain of jobs of another dataset.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from bulkgrpc.bench import bare_copy, drain, observe, readings, service_processes
from bulkgrpc.bench.bare_copy import Baseline
from bulkgrpc.bench.environment import Deployment, Environment
from bulkgrpc.bench.model import Load, Rate, Report
from bulkgrpc.bench.policy_cases import PolicyCase, PolicyResults
from bulkgrpc.bench.service_processes import ServiceProcess
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.postgres import bench_state
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.settings import PREFIX


def run(environment: Environment, cases: Sequence[PolicyCase], load: Load, report: Report) -> PolicyResults:
    """Measure all cases in `load.rounds` rounds. Raises BenchFailed."""
    # By default workers adapt the size of their chunks: the baselines could not have the same size.
    fixed_size = {f"{PREFIX}CHUNK_ROWS_{bound}": str(load.chunk_rows) for bound in ("MIN", "MAX")}
    rounds = []
    with (
        environment.deployment("policies", load.tenants) as deployment,
        service_processes.workers(deployment, load.workers, environment.directory, fixed_size) as running,
        environment.connection() as connection,
    ):
        measurement = _Measurement(environment, deployment, running, connection, load, tuple(cases))
        observe.wait_group_balanced(deployment, load.workers)
        report("warming up")
        payloads = _payloads(cases, load)
        measurement.warm_up(payloads)
        measurement.prepare_tables()
        for number in range(1, load.rounds + 1):
            rates: dict[str, Rate] = {}
            for case in cases:
                report(f"round {number} of {load.rounds}: {case.name}")
                rates[case.name] = measurement.measure(case, payloads)
            rounds.append(rates)
    return PolicyResults(load, tuple(cases), tuple(rounds))


def steps(cases: Sequence[PolicyCase], load: Load) -> int:
    """Return how often `run` reports."""
    return len(cases) * load.rounds + 1


@dataclass(frozen=True, slots=True)
class _Measurement:
    environment: Environment
    deployment: Deployment
    workers: Sequence[ServiceProcess]
    connection: Connection
    load: Load
    cases: tuple[PolicyCase, ...]

    def warm_up(self, payloads: dict[str, list[bytes]]) -> None:
        """Let every worker load every dataset: build its codec, compile its rules."""
        for case in _written_by_workers(self.cases):
            key, batch = f"warm-{secrets.token_hex(4)}", payloads[case.name][:1]
            tenants = readings.tenants_of(self.load)
            drain.fill(self.deployment, drain.plan(case.dataset, tenants, key, batch, self.load.batch_rows))
            observe.wait_jobs_ended(self.connection, key, self.load.tenants, needed=self.workers)

    def prepare_tables(self) -> None:
        """Empty the tables, add the constraints, and save the rows from which existing keys are taken."""
        for case in _written_by_workers(self.cases):
            bench_state.clear_without_autovacuum(self.connection, case.dataset)
            if case.rejected_one_in:
                bench_state.reject_one_row_in(self.connection, case.dataset, case.rejected_one_in)
        first = self.cases[0]
        bare_copy.write(self.environment, _baseline(first), self.load)
        bench_state.save_rows(self.connection, first.dataset)

    def measure(self, case: PolicyCase, payloads: dict[str, list[bytes]]) -> Rate:
        """Measure one case from its initial state. Raises BenchFailed."""
        bench_state.reset(self.connection, case.dataset, one_row_in=case.existing_one_in)
        if case.dataset.dedupe_window_s:
            self._reset_window(case)
        if case.writer == "workers":
            return self._drain(case, payloads[case.name])
        rate = bare_copy.write(self.environment, _baseline(case), self.load)
        observe.check_table(self.connection, case.dataset, self.load.rows)
        return rate

    def _drain(self, case: PolicyCase, payloads: list[bytes]) -> Rate:
        key, tenants = f"policies-{secrets.token_hex(4)}", readings.tenants_of(self.load)
        planned = drain.plan(case.dataset, tenants, key, payloads, self.load.batch_rows)
        one = drain.Drain(self.environment, self.deployment, self.workers, self.connection)
        rate = one.run(planned, key, self.load.rows)
        observe.check_counts(self.connection, case.dataset, key, self.load.tenants, case.counts(self.load))
        return rate

    def _reset_window(self, case: PolicyCase) -> None:
        """Set what the dataset's dedupe window remembers."""
        bench_state.forget_records(self.connection, case.dataset)
        if case.remembered == "others":
            bench_state.remember_random_records(self.connection, case.dataset, self.load.rows)
        elif case.remembered == "same":
            source = next(item for item in self.cases if item.dataset.dedupe_window_s)
            bench_state.remember_records_of(self.connection, case.dataset, source.dataset)
        bench_state.checkpoint(self.connection)


def _written_by_workers(cases: Sequence[PolicyCase]) -> list[PolicyCase]:
    return [case for case in cases if case.writer == "workers"]


def _baseline(case: PolicyCase) -> Baseline:
    return Baseline(case.dataset, case.batches, staged=case.writer == "staging")


def _payloads(cases: Sequence[PolicyCase], load: Load) -> dict[str, list[bytes]]:
    """Return the batches of one tenant's job, by case name. Cases with the same messages share them."""
    encoded: dict[object, list[bytes]] = {}
    payloads = {}
    for case in _written_by_workers(cases):
        if case.batches not in encoded:
            encoded[case.batches] = case.batches(BatchCodec(case.dataset), 0, load.tenant_rows, load.batch_rows)
        payloads[case.name] = encoded[case.batches]
    return payloads
