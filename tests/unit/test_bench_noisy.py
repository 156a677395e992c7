import pytest

from bulkgrpc.bench.model import BenchFailed, Quantiles
from bulkgrpc.bench.noisy_cases import (
    NOISY,
    PARTITIONS,
    QUIET_PARTITION,
    Case,
    NoisyCase,
    NoisyLoad,
    NoisyResults,
    noisy_partitions,
    tenant_on,
    unrelated_cores,
)
from bulkgrpc.kafka.partition import partition_of


def case(which: Case, p50_ms: float, p99_ms: float, cpu_cores: float) -> NoisyCase:
    return NoisyCase(which, Quantiles(p50_ms, p99_ms, 10), 0.0, cpu_cores)


@pytest.mark.parametrize("assignment", [[[0, 1], [2, 3]], [[0, 2], [1, 3]], [[1, 2], [0, 3]]])
def test_the_noisy_tenant_is_beside_the_quiet_one_and_on_the_other_worker(assignment: list[list[int]]) -> None:
    partitions = noisy_partitions(assignment)
    (ours,) = (found for found in assignment if QUIET_PARTITION in found)

    assert partitions.keys() == set(NOISY)
    assert partitions[Case.SAME_PARTITION] == QUIET_PARTITION
    assert partitions[Case.SAME_WORKER] in ours
    assert partitions[Case.SAME_WORKER] != QUIET_PARTITION
    assert partitions[Case.OTHER_WORKER] not in ours


@pytest.mark.parametrize("assignment", [[[0], [1, 2, 3]], [[0, 1, 2, 3], []], []])
def test_partitions_that_have_no_place_for_the_noisy_tenant_are_an_error(assignment: list[list[int]]) -> None:
    with pytest.raises(BenchFailed, match="partition 0"):
        noisy_partitions(assignment)


def test_a_tenant_of_each_partition_is_found() -> None:
    tenants = [tenant_on(partition, "noisy") for partition in range(PARTITIONS)]

    assert [partition_of(tenant, PARTITIONS) for tenant in tenants] == list(range(PARTITIONS))


def test_the_quiet_tenant_submits_ten_jobs_a_second() -> None:
    assert NoisyLoad(20.0).samples == 200


def test_the_unrelated_load_costs_what_the_noisy_tenant_cost_on_average() -> None:
    cores = {Case.ALONE: 0.25, Case.SAME_PARTITION: 1.0, Case.SAME_WORKER: 1.5, Case.OTHER_WORKER: 2.0}
    measured = [case(which, 1, 1, used) for which, used in cores.items()]

    assert unrelated_cores(measured) == 1.25


def test_ratios_are_to_the_unrelated_load() -> None:
    noisy, unrelated = case(Case.SAME_WORKER, 300, 900, 2), case(Case.UNRELATED, 20, 90, 2)
    results = NoisyResults(NoisyLoad(20.0), (noisy, unrelated))

    assert results.ratios(noisy) == (15, 10)
    assert results.ratios(unrelated) == (1, 1)
