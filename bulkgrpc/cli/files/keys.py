"""Finds columns whose values are unique in a file. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

COLUMNS_MAX = 4
"""Maximum columns of a key that is found. Keys with more are rare."""

CANDIDATES_MAX = 16
"""Columns that are tried, so that a file with hundreds takes seconds."""
_SAMPLE_ROWS = 5_000

Codes = npt.NDArray[np.int64]


def find_key(columns: Mapping[str, pa.Array], rows: int) -> tuple[str, ...]:
    """Return the smallest combination of columns whose values are unique; () if there is none.

    columns: without nulls, the preferred ones first. Among combinations of the same size the first one wins.
    """
    codes, sizes = dict[str, Codes](), dict[str, int]()
    for name, values in columns.items():
        encoded = pc.dictionary_encode(values)
        codes[name], sizes[name] = encoded.indices.to_numpy().astype(np.int64), len(encoded.dictionary)
    useful = [name for name in columns if sizes[name] > 1 or rows == 1][:CANDIDATES_MAX]
    for width in range(1, COLUMNS_MAX + 1):
        # `combinations` yields those of the first columns first.
        for names in itertools.combinations(useful, width):
            if math.prod(sizes[name] for name in names) < rows:
                continue
            wanted = [codes[name] for name in names]
            # What is not unique in a sample is not unique in all rows: the sample rules out most combinations.
            if all(_is_unique([code[:count] for code in wanted], count) for count in (min(_SAMPLE_ROWS, rows), rows)):
                return names
    return ()


def _is_unique(codes: list[Codes], rows: int) -> bool:
    combined = codes[0]
    for more in codes[1:]:
        # Renumbered in each step: the product of all sizes may exceed 64 bits.
        _, combined = np.unique(combined * (int(more.max()) + 1) + more, return_inverse=True)
    return len(np.unique(combined)) == rows
