"""Faults of Redis and of the network between each two parts."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from tests.chaos.fault import Fault, Hurt, repeating
from tests.chaos.proxy import Mood, Way
from tests.chaos.rig import PAIRS, Rig

CUT_S = 2.5
DELAY_S = 0.02


def _client(rig: Rig) -> redis.Redis:
    return redis.Redis.from_url(rig.stack.addresses.redis, socket_timeout=5)


def _flush(client: redis.Redis) -> None:
    client.flushall()


@contextmanager
def _flushed(rig: Rig, _: random.Random) -> Iterator[None]:
    client = _client(rig)
    with repeating(lambda: _flush(client), 0.1):
        yield
    client.close()


@contextmanager
def _killed(rig: Rig, _: random.Random) -> Iterator[None]:
    part = rig.stack.part("redis")
    part.kill()
    yield
    part.start()


@contextmanager
def _frozen(rig: Rig, _: random.Random) -> Iterator[None]:
    part = rig.stack.part("redis")
    part.kill(signal.SIGSTOP)
    try:
        yield
    finally:
        part.kill(signal.SIGCONT)


@contextmanager
def _full(rig: Rig, _: random.Random) -> Iterator[None]:
    client = _client(rig)
    client.config_set("maxmemory", "1mb")
    try:
        yield
    finally:
        client.config_set("maxmemory", "256mb")
        client.close()


def _stalled(pair: str, *ways: Way) -> Hurt:
    @contextmanager
    def hurt(rig: Rig, chance: random.Random) -> Iterator[None]:
        proxy = rig.proxies[pair]
        proxy.set(Mood(stalled=frozenset(ways)))
        try:
            yield
        finally:
            # A network that comes back delivers what it held, or the ends have given up on each other.
            if chance.random() < 0.5:
                proxy.reset()
            proxy.set(Mood())

    return hurt


@contextmanager
def _slow(rig: Rig, _: random.Random) -> Iterator[None]:
    for proxy in rig.proxies.values():
        proxy.set(Mood(delay_s=DELAY_S))
    try:
        yield
    finally:
        for proxy in rig.proxies.values():
            proxy.set(Mood())


def _reset(pair: str) -> Hurt:
    @contextmanager
    def hurt(rig: Rig, _: random.Random) -> Iterator[None]:
        with repeating(rig.proxies[pair].reset, 0.3):
            yield

    return hurt


REDIS_FAULTS = (
    Fault("redis: flushed again and again", "redis", _flushed),
    Fault("redis: SIGKILL", "redis", _killed),
    Fault("redis: SIGSTOP", "redis", _frozen, 3.0),
    Fault("redis: full", "redis", _full),
)
CUT_FAULTS = tuple(
    Fault(f"network: {pair}, {name}", "network", _stalled(pair, *ways), CUT_S)
    for pair in PAIRS
    for name, ways in (("there", (Way.TO,)), ("back", (Way.FROM,)), ("both ways", (Way.TO, Way.FROM)))
)
NETWORK_FAULTS = (
    *CUT_FAULTS,
    *(Fault(f"network: {pair}, reset", "network", _reset(pair)) for pair in ("client-server", "worker-kafka")),
    Fault("network: slow everywhere", "network", _slow),
)
