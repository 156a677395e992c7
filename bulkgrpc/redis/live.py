"""Live jobs in Redis: how far they came, and which stream holds them.

A hash `bulk:job:{job_id}` a job, with a string `bulk:digests:{job_id}` of its last batches' digests; a string
`bulk:lease:{job_id}` a leased job. All run out by themselves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from bulkgrpc.model import JobKey, JobState, to_us
from bulkgrpc.redis.job import DIGEST_CHARS, DIGESTS_MAX, LiveJob, from_fields, from_ring, to_fields

JOB_TTL_S: Final = 24 * 3600
LEASE_TTL_S: Final = 10
DEADLINE_S: Final = 0.5
"""Of one call, whatever it meets: a connection that is dead, a server that is stopped."""
AVOID_S: Final = 1.0
"""How long nobody asks again after a failure, so that a dead Redis costs one deadline and not one a call."""
CONNECTIONS_MAX: Final = 16

# The digests given are those right before next_sequence. Where they do not join on to what is known, what the ring
# holds is of other batches: it starts anew.
_REMEMBER = """
local fields = redis.call('HMGET', KEYS[1], 'next_sequence', 'accepted', 'state')
local next_sequence, accepted, state = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local known = tonumber(fields[1] or -1)
if next_sequence > known then
  redis.call('HSET', KEYS[1], 'next_sequence', ARGV[2], 'accepted', ARGV[3], 'partitions', ARGV[8])
  local digests, size, places = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
  local first = next_sequence - #digests / size
  if first > known then redis.call('DEL', KEYS[2]) end
  for sequence = math.max(first, known), next_sequence - 1 do
    local from = (sequence - first) * size
    redis.call('SETRANGE', KEYS[2], sequence % places * size, string.sub(digests, from + 1, from + size))
  end
  redis.call('EXPIRE', KEYS[2], ARGV[1])
elseif next_sequence == known and accepted > tonumber(fields[2] or 0) then
  redis.call('HSET', KEYS[1], 'accepted', ARGV[3])
end
if state > tonumber(fields[3] or 0) then redis.call('HSET', KEYS[1], 'state', ARGV[4]) end
for i = 9, #ARGV, 2 do redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
"""
# A lease is `session_id` + newline + `stream_id`. A stream takes it if nobody, itself or its own session has it.
_TAKE = """
local held = redis.call('GET', KEYS[1])
local session = ARGV[1] .. string.char(10)
if held and string.sub(held, 1, #session) ~= session then return 0 end
redis.call('SET', KEYS[1], session .. ARGV[2], 'PX', ARGV[3])
return 1
"""
_RENEW = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


class RedisUnavailable(Exception):
    """Redis does not answer, or not in time."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a job: a client's session, by one of its streams. A later stream of the same session takes over."""

    session_id: str
    stream_id: str

    @property
    def value(self) -> str:
        """What stands in Redis."""
        return f"{self.session_id}\n{self.stream_id}"


class LiveJobs:
    """Reads and writes live jobs. An async context manager; it owns its connections.

    Every method raises RedisUnavailable if Redis does not answer within DEADLINE_S; for AVOID_S after that, at once.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        pool: Any = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS_MAX,
            timeout=DEADLINE_S,
            socket_timeout=DEADLINE_S,
            socket_connect_timeout=DEADLINE_S,
            # Once, for a connection that died while it lay idle.
            retry=Retry(NoBackoff(), 1),
            decode_responses=True,
        )
        self._redis: Any = Redis.from_pool(pool)
        self._clock = clock
        self._avoid_until_s = 0.0
        self._calls: set[asyncio.Task[object]] = set()

    async def __aenter__(self) -> LiveJobs:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._calls:
            await asyncio.wait(self._calls, timeout=2 * DEADLINE_S)
        await self._redis.aclose()

    async def remember(self, *lives: LiveJob) -> None:
        """Write down how far jobs came, all in one round trip. Never takes a sequence, a count or a seal back."""
        if not lives:
            return
        pipeline = self._redis.pipeline(transaction=False)
        for live in lives:
            key = live.spec.key
            pipeline.eval(_REMEMBER, 2, _job(key), _digests(key), *_arguments(live))
        await self._ask(pipeline.execute())

    async def get(self, key: JobKey) -> LiveJob | None:
        """Return what is known of a job; None if that is nothing, or it is another tenant's."""
        live = from_fields(cast(dict[str, str], await self._ask(self._redis.hgetall(_job(key)))))
        return live if live is not None and live.spec.key == key else None

    async def get_many(self, keys: Sequence[JobKey]) -> Mapping[JobKey, LiveJob]:
        """Return what is known of jobs, all in one round trip; those of which nothing is known are left out."""
        if not keys:
            return {}
        pipeline = self._redis.pipeline(transaction=False)
        for key in keys:
            pipeline.hgetall(_job(key))
        answers = cast(list[dict[str, str]], await self._ask(pipeline.execute()))
        lives = zip(keys, map(from_fields, answers), strict=True)
        return {key: live for key, live in lives if live is not None and live.spec.key == key}

    async def digests(self, key: JobKey) -> Mapping[int, bytes]:
        """Return the digests of a job's last batches by sequence, as far as they are known; at most DIGESTS_MAX."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.hget(_job(key), "next_sequence")
        pipeline.get(_digests(key))
        next_sequence, ring = cast(tuple[str | None, str | None], await self._ask(pipeline.execute()))
        return from_ring(int(next_sequence or 0), ring or "")

    async def forget(self, key: JobKey) -> None:
        """Remove all that is known of a job, but for who holds it."""
        await self._ask(self._redis.delete(_job(key), _digests(key)))

    async def take_lease(self, key: JobKey, holder: Holder) -> bool:
        """Hold a job for LEASE_TTL_S; False if another session holds it. A stream of the same session is pushed out."""
        call = self._redis.eval(_TAKE, 1, _lease(key), holder.session_id, holder.stream_id, LEASE_TTL_S * 1000)
        return await self._ask(call) == 1

    async def renew_lease(self, key: JobKey, holder: Holder) -> bool:
        """Hold a job for another LEASE_TTL_S, also if the lease had run out; False if another stream holds it."""
        return await self._ask(self._redis.eval(_RENEW, 1, _lease(key), holder.value, LEASE_TTL_S * 1000)) == 1

    async def release_lease(self, key: JobKey, holder: Holder) -> None:
        """Let a job go, unless another stream holds it."""
        await self._ask(self._redis.eval(_RELEASE, 1, _lease(key), holder.value))

    async def eviction_policy(self) -> str:
        """Return `maxmemory-policy`; anything but `noeviction` may drop live jobs before their time."""
        found = await self._ask(self._redis.config_get("maxmemory-policy"))
        return str(cast(dict[str, str], found).get("maxmemory-policy", ""))

    async def _ask(self, call: Coroutine[Any, Any, object]) -> object:
        if self._clock() < self._avoid_until_s:
            call.close()
            raise RedisUnavailable("Redis did not answer a moment ago")
        # redis-py may swallow a cancellation (8.1.0, while it waits for a connection), and a stream that cannot be
        # cancelled never ends: cancel the wait, not the call, which ends by its own timeouts.
        task = asyncio.ensure_future(call)
        self._calls.add(task)
        task.add_done_callback(self._forget)
        done, _ = await asyncio.wait({task}, timeout=DEADLINE_S)
        try:
            if not done:
                task.cancel()
                raise TimeoutError(f"no answer within {DEADLINE_S:g} s")
            return task.result()
        except (RedisError, OSError, RuntimeError) as error:
            # A write to a connection that died in this moment is a RuntimeError of uvloop (0.23.0).
            self._avoid_until_s = self._clock() + AVOID_S
            raise RedisUnavailable(f"Redis: {error or type(error).__name__}") from error

    def _forget(self, task: asyncio.Task[object]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            # Looked at, so that asyncio does not complain of a call that nobody waits for any more.
            task.exception()


def _arguments(live: LiveJob) -> list[str | int]:
    once = to_fields(live)
    if live.state is not JobState.OPEN and live.seal_time is not None:
        once["seal_time_us"] = str(to_us(live.seal_time))
    pairs = [text for pair in once.items() for text in pair]
    digests = "".join(digest.hex() for digest in live.recent)
    how_far = [JOB_TTL_S, live.next_sequence, live.accepted, int(live.state)]
    partitions = ",".join(map(str, live.partitions))
    return [*how_far, digests, DIGEST_CHARS, DIGESTS_MAX, partitions, *pairs]


def _job(key: JobKey) -> str:
    return f"bulk:job:{key.job_id}"


def _digests(key: JobKey) -> str:
    return f"bulk:digests:{key.job_id}"


def _lease(key: JobKey) -> str:
    return f"bulk:lease:{key.job_id}"
