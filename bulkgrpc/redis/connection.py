"""Connections to Redis: one server by its URL, or the primary that sentinels name.

`redis+sentinel://[user:password@]host:port[,host:port …]/SERVICE[/DATABASE][?option=value …]`, `rediss+sentinel` with
TLS. User, password and options are the server's; `sentinel_username` and `sentinel_password` are the sentinels'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis, Sentinel, SSLConnection
from redis.asyncio.connection import parse_url

_SCHEMES: Final = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
SENTINEL_PORT: Final = 26379
HELLO: Final = "HELLO"
"""The command whose answer says what a server is. Every user may send it."""


@dataclass(frozen=True, slots=True)
class Sentinels:
    """Sentinels, the name that they know the servers by, and the options of connections to either."""

    hosts: Sequence[tuple[str, int]]
    service: str
    of_server: dict[str, Any]
    of_sentinels: dict[str, Any]


def sentinels_of(url: str) -> Sentinels | None:
    """Return what a URL says of sentinels; None if it is one server's. Raises ValueError."""
    scheme, _, rest = url.partition("://")
    if scheme not in _SCHEMES:
        return None
    place, _, query = rest.partition("?")
    authority, _, path = place.partition("/")
    service, _, database = path.partition("/")
    login, at, hosts = authority.rpartition("@")
    if not service or not hosts:
        raise ValueError("a URL of sentinels is redis+sentinel://HOST:PORT,HOST:PORT/SERVICE")
    options: dict[str, Any] = dict(parse_url(f"{_SCHEMES[scheme]}://{login}{at}sentinel/{database}?{query}"))
    options.pop("host")
    tls = options.pop("connection_class", None) is SSLConnection
    login_of_sentinels = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    security = {name: value for name, value in options.items() if name.startswith("ssl_")}
    if tls:
        options["ssl"] = security["ssl"] = True
    return Sentinels([_host(one) for one in hosts.split(",")], service, options, {**security, **login_of_sentinels})


def open_redis(url: str, connections_max: int, **options: Any) -> Redis:
    """Return a client of the server of a URL, or of the primary of its sentinels. Raises ValueError if it is not valid.

    options: of each connection. A call waits for one of `connections_max` connections, for as long as `socket_timeout`;
    with sentinels it fails at once if there are ten times as many.
    """
    found = sentinels_of(url)
    if found is None:
        pool: Any = BlockingConnectionPool.from_url(
            url, max_connections=connections_max, timeout=options["socket_timeout"], **options
        )
        return Redis.from_pool(pool)
    # Sentinels that do not answer are passed over within a call's deadline.
    shared = {name: value for name, value in options.items() if name.endswith("timeout") or name == "retry"}
    sentinel = Sentinel(found.hosts, sentinel_kwargs={**shared, **found.of_sentinels})  # type: ignore[no-untyped-call]
    client: Redis = sentinel.master_for(
        found.service, max_connections=10 * connections_max, **{**options, **found.of_server}
    )
    return client


async def close_redis(client: Any) -> None:
    """Close a client of `open_redis`, and its connections to sentinels."""
    await client.aclose()
    sentinel = getattr(client.connection_pool, "sentinel_manager", None)
    for one in () if sentinel is None else sentinel.sentinels:
        await one.aclose()


def is_of_cluster(answer: object) -> bool:
    """Return whether the server that gave this answer to HELLO is one of a Redis Cluster.

    answer: a map, or with the older protocol the list of its keys and values.
    """
    if isinstance(answer, dict):
        return answer.get("mode", answer.get(b"mode")) in ("cluster", b"cluster")
    return isinstance(answer, list) and any(one in ("cluster", b"cluster") for one in answer[1::2])


def _host(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    return (host, int(port)) if colon else (text, SENTINEL_PORT)
