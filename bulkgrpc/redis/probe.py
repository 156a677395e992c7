"""Probes of a Redis or Valkey server: whether it answers."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import redis

from bulkgrpc.redis.connection import HELLO, close_redis, is_of_cluster, open_redis
from bulkgrpc.redis.outage import Cause, cause_of


def why_not_ready(host: str, port: int, timeout_s: float) -> str | None:
    """Send PING. Return None if the server answers, or else the reason. timeout_s: time limit of each step."""
    client = redis.Redis(host, port, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
    try:
        client.ping()
    except redis.RedisError as error:
        return str(error)
    finally:
        client.close()
    return None


def why_no_answer(url: str, timeout_s: float) -> str | None:
    """Send PING to the server of a URL. Return None if it can serve, or else the reason and what to check."""
    try:
        # In a thread: the caller may have an event loop.
        with ThreadPoolExecutor(1) as threads:
            of_cluster = threads.submit(lambda: asyncio.run(_greet(url, timeout_s))).result()
    except (redis.RedisError, OSError) as error:
        cause = cause_of(error)
        return f"{cause}: {error}" + (f": {cause.remedy}" if cause.remedy else "")
    except (ValueError, TypeError) as error:
        return f"BULKGRPC_REDIS: {error}"
    return f"{Cause.WRONG_SERVER}: it is of a Redis Cluster: {Cause.WRONG_SERVER.remedy}" if of_cluster else None


async def _greet(url: str, timeout_s: float) -> bool:
    """Send PING, and return whether the server is one of a cluster."""
    client: Any = open_redis(url, 1, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
    try:
        await client.ping()
        return is_of_cluster(await client.execute_command(HELLO))
    finally:
        await close_redis(client)
