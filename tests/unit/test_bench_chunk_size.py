from bulkgrpc.bench.chunk_size import ChunkTimes, recommended


def _sizes(*measured: tuple[int, float]) -> list[ChunkTimes]:
    return [ChunkTimes(rows, (seconds,)) for rows, seconds in measured]


def test_a_larger_chunk_that_is_hardly_faster_is_not_recommended() -> None:
    sizes = _sizes((1_000, 0.010), (5_000, 0.020), (20_000, 0.050), (50_000, 0.122))
    assert recommended(sizes, 1.0).chunk_rows == 20_000


def test_a_size_that_takes_too_long_is_not_recommended() -> None:
    sizes = _sizes((1_000, 0.010), (5_000, 0.020), (20_000, 0.050))
    assert recommended(sizes, 0.03).chunk_rows == 5_000
    assert recommended(sizes, 0.001).chunk_rows == 1_000


def test_a_slower_size_is_not_recommended() -> None:
    assert recommended(_sizes((1_000, 0.001), (5_000, 0.010)), 1.0).chunk_rows == 1_000


def test_one_delayed_chunk_does_not_change_the_rate() -> None:
    assert ChunkTimes(1_000, (0.01, 5.0, 0.01)).rows_per_s == 100_000
