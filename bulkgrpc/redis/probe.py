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


def why_no_answer(url: str, timeout_s: float) -> str | None:
    """Send PING to the server of a URL. Return None if it answers, or else the reason."""
    try:
        with redis.Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s) as client:
            client.ping()
    except (redis.RedisError, ValueError) as error:
        return str(error)
    return None
