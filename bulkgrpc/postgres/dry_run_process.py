"""The dry run of a message type in a process of its own: what a caller sends may take any time and memory.

The process reads a JSON object with `message_type` and `descriptors` (base64) from stdin, and prints one: empty, or
`field` and `message` of what no worker could do. It has CPU_S of processor time and MEMORY_BYTES of address space.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import resource
import subprocess
import sys
from typing import Final

from bulkgrpc.datasets.overrides import InvalidDataset

CPU_S: Final = 5
WALL_S: Final = 20.0
MEMORY_BYTES: Final = 2 * 1024**3
DESCRIPTORS_BYTES_MAX: Final = 1024 * 1024
_one_at_a_time = asyncio.Semaphore(1)


async def dry_run(descriptors: bytes, message_type: str) -> None:
    """Define a dataset, compile it and write a row of it to nowhere, in a child process, one at a time.

    Raises InvalidDataset with the field and the reason for what no worker could do, and for what takes too much.
    """
    if len(descriptors) > DESCRIPTORS_BYTES_MAX:
        raise InvalidDataset(
            "descriptors",
            f"the descriptors are {len(descriptors):,} bytes, the limit is {DESCRIPTORS_BYTES_MAX:,}: send only the "
            f"files that {message_type} needs, without comments (source_code_info)",
        )
    request = {"message_type": message_type, "descriptors": base64.b64encode(descriptors).decode()}
    await _one_at_a_time.acquire()
    running = asyncio.ensure_future(asyncio.to_thread(_run, json.dumps(request).encode()))
    # Once the process has ended, also if the caller is gone: callers that come and go would occupy every thread.
    running.add_done_callback(lambda _: _one_at_a_time.release())
    said = await asyncio.shield(running)
    if said is None:
        raise InvalidDataset(
            "message_type",
            f"{message_type} takes more than {CPU_S} s or {MEMORY_BYTES >> 30} GiB to compile: shorten its patterns "
            "and rules",
        )
    if said:
        raise InvalidDataset(said["field"], said["message"])


def _run(request: bytes) -> dict[str, str] | None:
    """Return what the process says; None if it ended without an answer, or did not end in time.

    In a thread, and not by the event loop: uvloop may fail to write to a process that has just ended.
    """
    command = [sys.executable, "-m", __name__]
    environment = {**os.environ, "RUST_BACKTRACE": "0"}
    try:
        ended = subprocess.run(
            command, input=request, capture_output=True, env=environment, timeout=WALL_S, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    return None if ended.returncode else dict(json.loads(ended.stdout))


def main() -> None:
    """Answer one request."""
    for limit, most in ((resource.RLIMIT_CPU, CPU_S), (resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (most, most))
    from bulkgrpc.datasets.definition import define  # noqa: PLC0415 — what it loads counts, too
    from bulkgrpc.postgres import dry_run as rehearsal  # noqa: PLC0415

    request = json.load(sys.stdin)
    answer = {}
    try:
        rehearsal.dry_run(define(base64.b64decode(request["descriptors"]), request["message_type"]))
    except InvalidDataset as error:
        answer = {"field": error.field, "message": str(error)}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
