"""Probes of a Redis or Valkey server: whether it answers."""

from __future__ import annotations

import redis


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
