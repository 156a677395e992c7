from bulkgrpc.bench.curve import Point, worth


def _points(*taken: tuple[int, float]) -> list[Point]:
    return [Point(rows, (seconds,)) for rows, seconds in taken]


def test_a_larger_chunk_that_is_hardly_faster_is_not_worth_its_latency() -> None:
    points = _points((1_000, 0.010), (5_000, 0.020), (20_000, 0.050), (50_000, 0.122))
    assert worth(points, 1.0).chunk_rows == 20_000


def test_what_takes_too_long_is_not_worth_it() -> None:
    points = _points((1_000, 0.010), (5_000, 0.020), (20_000, 0.050))
    assert worth(points, 0.03).chunk_rows == 5_000
    assert worth(points, 0.001).chunk_rows == 1_000


def test_a_size_at_which_it_gets_slower_is_passed_over() -> None:
    assert worth(_points((1_000, 0.001), (5_000, 0.010)), 1.0).chunk_rows == 1_000


def test_one_chunk_that_was_held_up_does_not_count() -> None:
    assert Point(1_000, (0.01, 5.0, 0.01)).rows_per_s == 100_000
