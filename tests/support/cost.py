"""What Python itself does in a piece of work: opcodes executed, blocks of memory left alive.

Two counters, for each alone misses one kind: traced opcodes miss a C-level loop that makes objects, live blocks miss
a comprehension whose objects are gone at once.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

OPCODES_RATIO_MAX = 1.2
"""Ten or a hundred times the rows may take so many times the opcodes: a few, a piece of a megabyte, do grow."""
BLOCKS_SLACK = 500

Work = Callable[[], object]


def cost(work: Work) -> tuple[int, int]:
    """Return the opcodes that `work` executes the second time, and the blocks that its result keeps alive."""
    work()
    opcodes = 0

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal opcodes
        frame.f_trace_opcodes = True
        opcodes += event == "opcode"
        return trace

    # Garbage of before must not be counted as freed by the work.
    gc.collect()
    gc.disable()
    before = sys.getallocatedblocks()
    sys.settrace(trace)
    try:
        result = work()
    finally:
        sys.settrace(None)
        gc.enable()
    blocks = sys.getallocatedblocks() - before
    del result
    return opcodes, blocks
