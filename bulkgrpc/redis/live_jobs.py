"""The progress of jobs and their leases in Redis: adapter of the port `bulkgrpc.ingest.ports.LiveJobs`.

Per job a hash `bulk:job:{job_id}` with its progress and a string `bulk:digests:{job_id}` with the digests of its last
batches; per leased job a string `bulk:lease:{job_id}`. All of them expire.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, cast

import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from bulkgrpc.ingest.live_job import LiveJob
from bulkgrpc.ingest.ports import Acquired, LeaseHolder, RedisUnavailable, Renewed
from bulkgrpc.limits import LEASE_TTL_S, RECENT_DIGESTS_MAX
from bulkgrpc.model import JobKey, JobState, to_us
from bulkgrpc.redis.connection import HELLO, close_redis, is_of_cluster, open_redis
from bulkgrpc.redis.job_fields import DIGEST_CHARS, from_fields, from_ring, to_fields
from bulkgrpc.redis.outage import Cause, cause_of

_log = structlog.get_logger()

JOB_TTL_S: Final = 24 * 3600
STREAM_TTL_S: Final = 60
"""Of what a lease leaves of a job whose progress is never saved."""
DEADLINE_S: Final = 0.5
"""Of one call, also with a dead connection or a stopped server."""
AVOID_S: Final = 1.0
"""Time after a failure in which every call fails at once, so that a dead Redis costs one deadline, not one per call."""
LOG_AGAIN_S: Final = 10.0
CONNECTIONS_MAX: Final = 16

# The digests in ARGV are those right before next_sequence. If they are not contiguous with the known ones, the ring
# contains digests of other batches: it is deleted first.
# A job that was opened again after a loss begins again: of its hash only what is about its streams is kept.
_SAVE = """
local attempt = tonumber(redis.call('HGET', KEYS[1], 'attempt') or 0)
if tonumber(ARGV[9]) < attempt then return 0 end
if tonumber(ARGV[9]) > attempt then
  local kept = redis.call('HMGET', KEYS[1], 'stream', 'released_epoch')
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('HSET', KEYS[1], 'attempt', ARGV[9])
  if kept[1] then redis.call('HSET', KEYS[1], 'stream', kept[1]) end
  if kept[2] then redis.call('HSET', KEYS[1], 'released_epoch', kept[2]) end
end
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
for i = 10, #ARGV, 2 do redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
"""
# A lease is `session_id` + newline + `stream_id`. A stream acquires it if it is free, or its own session holds it. The
# job's hash keeps the last stream for longer than the lease lasts: a stream whose lease has expired learns from it
# whether another one had the lease since. The values that the scripts return are those of `Acquired` and `Renewed`.
_ACQUIRE = """
local lease = redis.call('GET', KEYS[1])
local session = ARGV[1] .. string.char(10)
if lease and string.sub(lease, 1, #session) ~= session then return 0 end
local last = lease or redis.call('HGET', KEYS[2], 'stream')
redis.call('SET', KEYS[1], session .. ARGV[2], 'PX', ARGV[3])
redis.call('HSET', KEYS[2], 'stream', session .. ARGV[2])
if not redis.call('HGET', KEYS[2], 'spec') then redis.call('EXPIRE', KEYS[2], ARGV[4]) end
if not last then return 1 end
return string.sub(last, 1, #session) == session and 2 or 3
"""
_RENEW = """
local lease = redis.call('GET', KEYS[1])
local last = lease or redis.call('HGET', KEYS[2], 'stream')
if last and last ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return last and 2 or 1
"""
_RELEASE = """
local known = redis.call('HGET', KEYS[2], 'spec')
if known then
  local released = tonumber(redis.call('HGET', KEYS[2], 'released_epoch') or 0)
  if tonumber(ARGV[2]) > released then redis.call('HSET', KEYS[2], 'released_epoch', ARGV[2]) end
end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if not known then redis.call('DEL', KEYS[2]) end
return redis.call('DEL', KEYS[1])
"""


class RedisLiveJobs:
    """Reads and writes live jobs. An async context manager; it owns its connections.

    Every method raises RedisUnavailable if Redis refuses, or does not answer within DEADLINE_S; for AVOID_S after that,
    at once. See the port for what each method promises. The constructor raises ValueError if `url` is not valid.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis: Any = open_redis(
            url,
            CONNECTIONS_MAX,
            socket_timeout=DEADLINE_S,
            socket_connect_timeout=DEADLINE_S,
            # Once, for a connection that died while it was idle.
            retry=Retry(NoBackoff(), 1),
            decode_responses=True,
        )
        self._clock = clock
        self._avoid_until_s = 0.0
        self._outage: Cause | None = None  # since the last call that was served
        self._log_again_at_s = 0.0
        self._calls: set[asyncio.Task[object]] = set()

    async def __aenter__(self) -> RedisLiveJobs:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._calls:
            await asyncio.wait(self._calls, timeout=2 * DEADLINE_S)
        await close_redis(self._redis)

    async def save(self, *jobs: LiveJob) -> None:
        """Save the progress of jobs in one round trip. A sequence, a count or a seal never goes backward."""
        if not jobs:
            return
        pipeline = self._redis.pipeline(transaction=False)
        for live in jobs:
            key = live.spec.key
            pipeline.eval(_SAVE, 2, _job(key), _digests(key), *_arguments(live))
        await self._call(pipeline.execute())

    async def get(self, key: JobKey) -> LiveJob | None:
        """Return the progress of a job; None if it is not known, or belongs to another tenant."""
        live = from_fields(cast(dict[str, str], await self._call(self._redis.hgetall(_job(key)))))
        return live if live is not None and live.spec.key == key else None

    async def get_many(self, keys: Sequence[JobKey]) -> Mapping[JobKey, LiveJob]:
        """Return the progress of jobs in one round trip, without those that are not known."""
        if not keys:
            return {}
        pipeline = self._redis.pipeline(transaction=False)
        for key in keys:
            pipeline.hgetall(_job(key))
        answers = cast(list[dict[str, str]], await self._call(pipeline.execute()))
        lives = zip(keys, map(from_fields, answers), strict=True)
        return {key: live for key, live in lives if live is not None and live.spec.key == key}

    async def digests(self, key: JobKey) -> Mapping[int, bytes]:
        """Return the known digests of a job's last batches by sequence; at most RECENT_DIGESTS_MAX."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.hget(_job(key), "next_sequence")
        pipeline.get(_digests(key))
        next_sequence, ring = cast(tuple[str | None, str | None], await self._call(pipeline.execute()))
        return from_ring(int(next_sequence or 0), ring or "")

    async def delete(self, key: JobKey) -> None:
        """Delete the progress and the digests of a job; its lease stays."""
        await self._call(self._redis.delete(_job(key), _digests(key)))

    async def acquire_lease(self, key: JobKey, holder: LeaseHolder) -> Acquired:
        """Acquire a job's lease, also from an earlier stream of the same session."""
        values = (holder.session_id, holder.stream_id, LEASE_TTL_S * 1000, STREAM_TTL_S)
        answer = await self._call(self._redis.eval(_ACQUIRE, 2, _lease(key), _job(key), *values))
        return Acquired(cast(int, answer))

    async def renew_lease(self, key: JobKey, holder: LeaseHolder) -> Renewed:
        """Renew a lease, also if it has expired and no other stream has had it since."""
        values = (_value(holder), LEASE_TTL_S * 1000)
        return Renewed(cast(int, await self._call(self._redis.eval(_RENEW, 2, _lease(key), _job(key), *values))))

    async def release_lease(self, key: JobKey, holder: LeaseHolder, epoch: int = 0) -> None:
        """Release a job's lease, unless another stream holds it, and keep the epoch of the stream that has ended."""
        await self._call(self._redis.eval(_RELEASE, 2, _lease(key), _job(key), _value(holder), epoch))

    async def eviction_policy(self) -> str:
        """Return `maxmemory-policy`; any other than `noeviction` may drop live jobs before they expire.

        Returns "" if the server does not report it: managed ones refuse CONFIG.
        """
        try:
            found = await self._call(self._redis.config_get("maxmemory-policy"), passes=ResponseError)
        except ResponseError:
            return ""
        return str(cast(dict[str, str], found).get("maxmemory-policy", ""))

    async def is_of_cluster(self) -> bool:
        """Return whether the server is one of a Redis Cluster, which cannot serve: keys of a job are in several slots.

        Every user may ask for it.
        """
        return is_of_cluster(await self._call(self._redis.execute_command(HELLO)))

    async def _call(
        self, call: Coroutine[Any, Any, object], passes: type[Exception] | tuple[type[Exception], ...] = ()
    ) -> object:
        """Await a call. Raises RedisUnavailable; an error of the type `passes` as it is."""
        if self._clock() < self._avoid_until_s:
            call.close()
            raise self._unavailable(self._outage or Cause.UNREACHABLE, "Redis did not serve the previous call")
        # redis-py may swallow a cancellation (8.1.0, while it waits for a connection), and a stream that cannot be
        # cancelled never ends: only the wait is cancelled; the call ends by its own timeouts.
        task = asyncio.ensure_future(call)
        self._calls.add(task)
        task.add_done_callback(self._forget)
        done, _ = await asyncio.wait({task}, timeout=DEADLINE_S)
        try:
            if not done:
                task.cancel()
                raise TimeoutError(f"no answer within {DEADLINE_S:g} s")
            answer = task.result()
        except passes:
            raise
        except (RedisError, OSError, RuntimeError) as error:
            # uvloop (0.23.0) raises RuntimeError for a write to a connection that has just died.
            cause = cause_of(error)
            self._log_outage(cause, error)
            self._outage, self._avoid_until_s = cause, self._clock() + AVOID_S
            raise self._unavailable(cause, f"Redis: {error or type(error).__name__}") from error
        if self._outage is not None:
            self._outage = None
            _log.info("redis_available")
        return answer

    @staticmethod
    def _unavailable(cause: Cause, message: str) -> RedisUnavailable:
        return RedisUnavailable(message, cause.value, cause.remedy)

    def _log_outage(self, cause: Cause, error: Exception) -> None:
        """Log an outage once for each cause, and every LOG_AGAIN_S while it lasts."""
        if cause is self._outage and self._clock() < self._log_again_at_s:
            return
        self._log_again_at_s = self._clock() + LOG_AGAIN_S
        _log.warning("redis_unavailable", cause=cause.value, error=str(error), remedy=cause.remedy)

    def _forget(self, task: asyncio.Task[object]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            # Retrieved, so that asyncio does not log the exception of a call without a waiter.
            task.exception()


def _arguments(live: LiveJob) -> list[str | int]:
    once = to_fields(live)
    if live.state is not JobState.OPEN and live.seal_time is not None:
        once["seal_time_us"] = str(to_us(live.seal_time))
    pairs = [text for pair in once.items() for text in pair]
    digests = "".join(digest.hex() for digest in live.recent_digests)
    progress = [JOB_TTL_S, live.next_sequence, live.accepted, int(live.state)]
    partitions = ",".join(map(str, live.partitions))
    return [*progress, digests, DIGEST_CHARS, RECENT_DIGESTS_MAX, partitions, live.attempt, *pairs]


def _job(key: JobKey) -> str:
    return f"bulk:job:{key.job_id}"


def _digests(key: JobKey) -> str:
    return f"bulk:digests:{key.job_id}"


def _lease(key: JobKey) -> str:
    return f"bulk:lease:{key.job_id}"


def _value(holder: LeaseHolder) -> str:
    return f"{holder.session_id}\n{holder.stream_id}"
