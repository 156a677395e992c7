import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkgrpc.bench.model import BenchFailed, Load, Quantiles, Rate, Resident, Round, Sample


@given(st.integers(1, 10**7), st.integers(1, 20_000), st.integers(1, 16))
def test_a_load_is_at_least_what_was_asked_in_full_batches_for_every_tenant(
    rows: int, batch_rows: int, workers: int
) -> None:
    load = Load.of(rows, batch_rows, workers, 1, 40)

    assert load.rows >= rows
    assert load.rows - rows < load.tenants * batch_rows
    assert load.tenants >= max(4, 2 * workers)
    assert load.tenant_rows % batch_rows == 0
    assert load.tenant_rows * load.tenants == load.rows


def test_ratios_are_of_one_round() -> None:
    measured = Round(bare=Rate(100, 1.0, 0.5), drain=Rate(100, 2.0, 1.0), whole=Rate(100, 4.0, 2.0))

    assert (measured.drain_ratio, measured.whole_ratio) == (0.5, 0.25)


def test_cpu_time_is_per_million_rows() -> None:
    assert Rate(250_000, 1.0, 0.5).cpu_s_per_million_rows == 2.0


@given(st.lists(st.floats(0, 10), min_size=1, max_size=500))
def test_quantiles_are_measured_times_in_order(times_s: list[float]) -> None:
    quantiles = Quantiles.of(times_s)

    in_ms = [time_s * 1000 for time_s in times_s]
    assert quantiles.p50_ms in in_ms
    assert quantiles.p99_ms in in_ms
    assert quantiles.p50_ms <= quantiles.p99_ms
    assert sum(time <= quantiles.p50_ms for time in in_ms) * 2 >= len(in_ms)


def test_the_99th_percentile_of_200_is_the_198th() -> None:
    assert Quantiles.of([number / 1000 for number in range(1, 201)]).p99_ms == pytest.approx(198)


def _samples(second_tenth_mb: float, last_tenth_mb: float) -> list[Sample]:
    return [Sample(0.05, 10), Sample(0.15, second_tenth_mb), Sample(0.5, 90), Sample(0.95, last_tenth_mb)]


@pytest.mark.parametrize(("end_mb", "flat"), [(100, True), (126, True), (127, False)])
def test_memory_is_flat_up_to_a_tenth_and_16_mb_more(end_mb: float, flat: bool) -> None:
    resident = Resident.of("server", _samples(100, end_mb), max_mb=130, limit_mb=300)

    assert (resident.tenth_mb, resident.end_mb, resident.flat) == (100, end_mb, flat)
    assert resident.meets_target is flat


def test_memory_over_its_limit_misses_the_target_though_flat() -> None:
    assert not Resident.of("server", _samples(100, 100), max_mb=300, limit_mb=300).meets_target


def test_a_load_too_small_to_be_sampled_is_an_error() -> None:
    with pytest.raises(BenchFailed, match="more gigabytes"):
        Resident.of("server", [Sample(0.05, 10), Sample(0.95, 10)], max_mb=10, limit_mb=300)
