"""Which columns of a file tell its rows apart. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

COLUMNS_MAX = 4
"""Of a key that is looked for. More are no key that somebody chose."""

CANDIDATES_MAX = 16
"""Columns that are looked at, so that a file of hundreds takes seconds."""
_SAMPLE_ROWS = 5_000

Codes = npt.NDArray[np.int64]


def find_key(columns: Mapping[str, pa.ChunkedArray], rows: int) -> tuple[str, ...]:
    """Return the fewest columns in whose values no two rows agree, of as many the first; none if there are none.

    columns: without nulls, the best ones for a key first.
    """
    codes, sizes = dict[str, Codes](), dict[str, int]()
    for name, values in columns.items():
        encoded = pc.dictionary_encode(values.combine_chunks())
        codes[name], sizes[name] = encoded.indices.to_numpy().astype(np.int64), len(encoded.dictionary)
    useful = [name for name in columns if sizes[name] > 1 or rows == 1][:CANDIDATES_MAX]
    for width in range(1, COLUMNS_MAX + 1):
        # `combinations` gives those of the first columns first.
        for names in itertools.combinations(useful, width):
            if math.prod(sizes[name] for name in names) < rows:
                continue
            wanted = [codes[name] for name in names]
            # What does not tell a few rows apart does not tell all: most are out after these.
            if all(_tells_apart([code[:count] for code in wanted], count) for count in (min(_SAMPLE_ROWS, rows), rows)):
                return names
    return ()


def _tells_apart(codes: list[Codes], rows: int) -> bool:
    combined = codes[0]
    for more in codes[1:]:
        # Numbered anew each time: the products of all sizes may be above 64 bits.
        _, combined = np.unique(combined * (int(more.max()) + 1) + more, return_inverse=True)
    return len(np.unique(combined)) == rows
