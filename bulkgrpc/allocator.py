"""Keep a process' memory flat: batches and chunks come and go by the megabyte, and glibc's defaults hold on to them."""

from __future__ import annotations

import ctypes

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def keep_flat(arenas: int) -> None:
    """Give large blocks back as soon as they are freed. Call before threads start; does nothing without glibc.

    arenas: how many of malloc's arenas there may be; each holds on to what its threads freed. Measured with `bulkgrpc
    bench memory`: see docs/benchmarks.md.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 64 * 1024)
        mallopt(_M_TRIM_THRESHOLD, 1024 * 1024)
        mallopt(_M_ARENA_MAX, arenas)
