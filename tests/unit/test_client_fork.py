"""A client in a process that was forked from the one that opened it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, os, sys
from bulkgrpc.client import AsyncBulkClient, BulkClient, ClientConfig

config = ClientConfig(call_deadline_s=1, connect_deadline_s=0.1)

def call(client):
    try:
        client.get_job("tenants/t/jobs/j")
    except Exception as error:
        return f"{type(error).__name__}: {error}"

client = BulkClient("127.0.0.1:1", config=config)
print("before", call(client), flush=True)
if os.fork() == 0:
    try:
        if sys.argv[1] == "old":
            print("child", call(client), flush=True)
            client.close()
        elif sys.argv[1] == "new":
            BulkClient("127.0.0.1:1", config=config)
        else:
            async def open_one():
                AsyncBulkClient("127.0.0.1:1", config=config)
            asyncio.run(open_one())
    except RuntimeError as error:
        print("child", type(error).__name__, error, flush=True)
    os._exit(0)
os.wait()
print("after", call(client), flush=True)
"""


@pytest.mark.parametrize("which", ["old", "new", "new async"])
def test_a_client_after_a_fork_says_so_at_once_and_the_parents_continues(which: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, which], capture_output=True, text=True, timeout=15, check=True
    )
    before, child, after = done.stdout.splitlines()
    assert "Unreachable" in before
    assert "forked after a client was opened" in child
    assert "spawn" in child
    assert "Unreachable" in after
