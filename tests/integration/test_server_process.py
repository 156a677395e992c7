"""The server as a process: start, drain, several on one address, TLS, what it says when it cannot serve."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from bulkgrpc.client import AsyncBulkClient, BulkError, ClientConfig, Tls
from bulkgrpc.errors import Reason
from bulkgrpc.server.grpc import tls
from bulkgrpc.server.supervisor import Supervisor, child_command, reserve
from bulkgrpc.settings import PREFIX, ServerSettings
from tests.integration.server_peer import (
    DEADLINE_S,
    Peer,
    a_key,
    batch,
    eventually,
    finish,
    header,
    next_answer,
    peer,
    read_topic,
    refusal,
    rest,
)
from tests.support.certificates import Authority

pytest_plugins = ["tests.integration.server_parts"]

Process = asyncio.subprocess.Process
Started = Callable[..., AbstractAsyncContextManager[tuple[Process, str]]]


def environment(settings: ServerSettings, **changes: object) -> dict[str, str]:
    values = {**settings.model_dump(), **changes}
    return {**os.environ, **{f"{PREFIX}{name.upper()}": str(value) for name, value in values.items()}}


async def spawn(env: dict[str, str], *arguments: str) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "bulkgrpc.server.process", *arguments),
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=1024 * 1024,
    )


@pytest.fixture
def started(server_settings: ServerSettings) -> Started:
    @asynccontextmanager
    async def start(*arguments: str, **changes: object) -> AsyncIterator[tuple[Process, str]]:
        process = await spawn(environment(server_settings, **changes), *arguments)
        assert process.stdout is not None
        try:
            line = (await asyncio.wait_for(process.stdout.readline(), DEADLINE_S)).decode()
            assert line.startswith("serving gRPC on "), (await process.communicate())[1].decode()
            yield process, line.split()[-1]
        finally:
            if process.returncode is None:
                process.terminate()
            await asyncio.wait_for(process.communicate(), DEADLINE_S)

    return start


async def ended(process: Process) -> int:
    return await asyncio.wait_for(process.wait(), DEADLINE_S)


async def health_of(client: Peer, service: str = "bulkgrpc.v1.IngestService") -> int:
    stub: Any = health_pb2_grpc.HealthStub(client.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE_S)
    status: int = answer.status
    return status


async def test_a_server_that_drains_lets_open_streams_end_refuses_new_ones_and_exits(started: Started) -> None:
    async with started(drain_s=15) as (process, address), peer(address) as client:
        await client.register()
        assert await health_of(client) == health_pb2.HealthCheckResponse.SERVING
        call = client.stream()
        await call.write(header())
        await next_answer(call)
        process.send_signal(signal.SIGTERM)

        async def draining() -> bool:
            return await health_of(client) == int(health_pb2.HealthCheckResponse.NOT_SERVING)

        await eventually(draining)
        code, refused = await refusal(client.whole(header()))
        assert (code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.DRAINING)
        assert refused.retry_after_s > 0
        await call.write(batch(0))
        assert (await next_answer(call)).acknowledged.next_sequence == 1
        await finish(call, 1)
        assert (await rest(call))[-1].sealed.job.counts.accepted == 2
        assert await ended(process) == 0


async def test_a_stream_that_does_not_end_in_time_is_ended_with_all_it_was_acknowledged_on_kafka(
    started: Started, server_settings: ServerSettings
) -> None:
    async with started(drain_s=0.2) as (process, address), peer(address) as client:
        await client.register()
        call = client.stream()
        await call.write(header())
        await next_answer(call)
        await call.write(batch(0))
        assert (await next_answer(call)).acknowledged.next_sequence == 1
        process.send_signal(signal.SIGTERM)
        code, refused = await refusal(next_answer(call))
        assert (code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.DRAINING)
        assert await ended(process) == 0
    found = await asyncio.to_thread(read_topic, server_settings.kafka, server_settings.topic)
    assert [message.sequence for message, _ in found] == [0]


async def test_a_killed_server_loses_nothing_it_acknowledged_and_another_goes_on(
    started: Started, server_settings: ServerSettings
) -> None:
    key, session = a_key(), a_key()
    async with started() as (process, address), peer(address) as client:
        await client.register()
        call = client.stream()
        await call.write(header(idempotency_key=key, session_id=session))
        await next_answer(call)
        for sequence in range(3):
            await call.write(batch(sequence))
            await next_answer(call)
        process.kill()
        await ended(process)
    async with started() as (_, address), peer(address) as client:
        answers = await client.whole(header(idempotency_key=key, session_id=session), *map(batch, range(5)))
        assert answers[-1].sealed.job.counts.accepted == 10
    found = await asyncio.to_thread(read_topic, server_settings.kafka, server_settings.topic)
    assert {message.sequence for message, _ in found} >= set(range(5))


async def test_several_processes_share_an_address_and_one_that_dies_is_started_again(started: Started) -> None:
    async with started("--processes", "2", drain_s=1) as (parent, address), peer(address) as client:
        await client.register()
        assert (await client.whole(header(), batch(0)))[-1].HasField("sealed")
        children = psutil.Process(parent.pid).children()
        assert len(children) == 2
        # librdkafka does not survive a fork: the parent has none.
        libraries = {Path(entry.path).name for entry in psutil.Process(parent.pid).memory_maps()}
        assert not any("rdkafka" in name for name in libraries)
        children[0].kill()

        async def two_again() -> bool:
            found = psutil.Process(parent.pid).children()
            serving = [child for child in found if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
            return len(serving) == 2 and children[0].pid not in {child.pid for child in serving}

        await eventually(two_again)
        parent.send_signal(signal.SIGTERM)
        assert await ended(parent) == 0
        assert not any(child.is_running() for child in children)


ONE_HANGS = 'if mkdir "$0" 2>/dev/null; then exec "$@"; else exec sleep 600; fi'
"""A child's command of which the first one serves and any other never does."""


def two_processes(command: list[str], env: dict[str, str], announced: list[str], start_within_s: float) -> Supervisor:
    return Supervisor(command, env, 2, 0.0, lambda: announced.append("serving"), start_within_s=start_within_s)


async def test_a_server_is_not_announced_and_not_ready_while_one_of_its_processes_does_not_serve(
    server_settings: ServerSettings, tmp_path: Path
) -> None:
    reserved, address = reserve("127.0.0.1:0")
    command = ["sh", "-c", ONE_HANGS, str(tmp_path / "one"), *child_command(address)]
    announced: list[str] = []
    with reserved, capture_logs() as logs:
        running = asyncio.create_task(two_processes(command, environment(server_settings), announced, 15).run())
        async with peer(address) as client:

            async def answers() -> bool:
                try:
                    return await health_of(client) > 0
                except grpc.aio.AioRpcError:
                    return False

            await eventually(answers)
            for service in ("", "bulkgrpc.v1.IngestService"):
                assert await health_of(client, service) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert not announced
        assert await asyncio.wait_for(running, DEADLINE_S) == 1
    assert not announced
    assert [log["seconds"] for log in logs if log["event"] == "server_process_not_started"] == [15]


async def test_a_process_that_dies_before_another_serves_is_not_counted_twice(tmp_path: Path) -> None:
    announced: list[str] = []
    # The first child serves, dies and comes back; the second never serves.
    says = "import os, sys, time; print('serving', flush=True); time.sleep(0.3)"
    command = ["sh", "-c", 'if mkdir "$0" 2>/dev/null; then exec sleep 600; else exec "$@"; fi', str(tmp_path / "one")]
    supervisor = two_processes([*command, sys.executable, "-c", says], dict(os.environ), announced, 5)
    assert await asyncio.wait_for(supervisor.run(), DEADLINE_S) == 1
    assert not announced


async def test_health_is_serving_once_all_processes_serve_and_of_one_that_is_started_again(started: Started) -> None:
    async with started("--processes", "2", drain_s=0) as (parent, address):

        async def all_ready() -> bool:
            # A connection for each check: the kernel chooses the process.
            found = set()
            for _ in range(12):
                async with peer(address) as client:
                    with suppress(grpc.aio.AioRpcError):  # of a process that was killed
                        found.add(await health_of(client, ""))
            return found == {int(health_pb2.HealthCheckResponse.SERVING)}

        await eventually(all_ready)
        psutil.Process(parent.pid).children()[0].kill()

        async def two_again() -> bool:
            found = psutil.Process(parent.pid).children()
            return len([child for child in found if child.status() != psutil.STATUS_ZOMBIE]) == 2

        await eventually(two_again)
        await eventually(all_ready)


async def test_several_processes_of_a_server_that_cannot_start_end_as_one_does(
    server_settings: ServerSettings,
) -> None:
    process = await spawn(environment(server_settings, kafka="127.0.0.1:1", processes=2))
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (out, process.returncode) == (b"", 1)
    assert b"BULKGRPC_KAFKA" in err


async def test_children_do_not_outlive_a_parent_that_is_killed(started: Started) -> None:
    async with started("--processes", "2", drain_s=0) as (parent, _):
        children = psutil.Process(parent.pid).children()
        parent.kill()
        await ended(parent)

        async def gone() -> bool:
            return not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)

        await eventually(gone)


async def test_services_can_be_asked_for_by_reflection(started: Started) -> None:
    async with started() as (_, address), peer(address) as client:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(client.channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = [answer async for answer in stub.ServerReflectionInfo(iter([asked]))]
        names = {service.name for service in answers[0].list_services_response.service}
        assert {"bulkgrpc.v1.IngestService", "bulkgrpc.v1.JobService", "bulkgrpc.v1.DatasetService"} <= names


async def said(settings: ServerSettings, *arguments: str, **changes: object) -> tuple[int, str]:
    """Start a server that cannot serve; return its exit status and the lines that begin with `error:`."""
    process = await spawn(environment(settings, **changes), *arguments)
    out, err = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    assert out == b""
    lines = [line for line in err.decode().splitlines() if line.startswith("error:")]
    assert len(lines) == 1, err.decode()
    return await ended(process), lines[0]


async def test_a_database_without_the_schema_is_named_with_the_command_that_helps(
    server_settings: ServerSettings,
) -> None:
    empty = f"empty_{a_key()[:8]}"
    with psycopg.connect(server_settings.postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {empty}".encode())
    url = server_settings.postgres.rpartition("/")[0] + f"/{empty}"
    status, line = await said(server_settings, postgres=url)
    with psycopg.connect(server_settings.postgres, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {empty} WITH (FORCE)".encode())
    assert status == 1
    assert "bulkgrpc migrate" in line


async def test_an_address_that_is_taken_is_named(server_settings: ServerSettings) -> None:
    server = await asyncio.start_server(lambda _, __: None, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for processes in (1, 2):
        status, line = await said(server_settings, "--listen", address, processes=processes)
        assert status == 1
        assert address in line
    server.close()


async def test_a_wrong_setting_is_named_and_several_processes_do_not_try_it_again_and_again(
    server_settings: ServerSettings,
) -> None:
    status, line = await said(server_settings, auth="password")
    assert status == 2
    assert "BULKGRPC_AUTH" in line


@pytest.mark.parametrize("arguments", [(), ("--processes", "2")])
async def test_a_key_set_that_is_nowhere_is_named(server_settings: ServerSettings, arguments: tuple[str, ...]) -> None:
    if arguments:
        process = await spawn(environment(server_settings, auth="jwt", jwks="ftp://x"), *arguments)
        _, err = await asyncio.wait_for(process.communicate(), DEADLINE_S)
        assert process.returncode == 2
        assert b"BULKGRPC_JWKS" in err
    else:
        status, line = await said(server_settings, auth="jwt", jwks="ftp://x")
        assert status == 2
        assert "BULKGRPC_JWKS" in line


async def test_with_a_certificate_the_server_speaks_tls_only(started: Started, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = authority.sign("server")
    async with started(tls_certificate=server.certificate, tls_key=server.key) as (_, address):
        target = address.replace("127.0.0.1", "localhost")
        credentials = grpc.ssl_channel_credentials(authority.file.read_bytes())
        async with grpc.aio.secure_channel(target, credentials) as channel:
            assert await health_of(Peer(target, channel)) == health_pb2.HealthCheckResponse.SERVING
        async with peer(address) as client:
            with pytest.raises(grpc.aio.AioRpcError):
                await health_of(client)


async def test_tls_1_2_ends_at_the_handshake(started: Started, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = authority.sign("server")
    async with started(tls_certificate=server.certificate, tls_key=server.key) as (_, address):
        assert await asyncio.to_thread(handshake, address, authority, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        with pytest.raises(ssl.SSLError):
            await asyncio.to_thread(handshake, address, authority, ssl.TLSVersion.TLSv1_2)


def handshake(address: str, authority: Authority, version: ssl.TLSVersion) -> str | None:
    """Connect with one version of TLS; return the one that was agreed on."""
    context = ssl.create_default_context(cafile=str(authority.file))
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    host, port = address.rsplit(":", 1)
    with (
        socket.create_connection((host, int(port)), DEADLINE_S) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as agreed,
    ):
        return agreed.version()


async def test_a_new_certificate_is_used_without_a_restart_and_a_broken_one_is_not(
    started: Started, tmp_path: Path
) -> None:
    old, new = Authority(tmp_path / "old", "old"), Authority(tmp_path / "new", "new")
    before, after = old.sign("server"), new.sign("server")
    certificate, key = tmp_path / "tls.pem", tmp_path / "tls-key.pem"
    certificate.write_bytes(before.certificate.read_bytes())
    key.write_bytes(before.key.read_bytes())

    def agrees(address: str, authority: Authority) -> bool:
        try:
            return handshake(address, authority, ssl.TLSVersion.TLSv1_3) is not None
        except ssl.SSLCertVerificationError:
            return False

    async with (
        started(tls_certificate=certificate, tls_key=key) as (_, address),
        grpc.aio.secure_channel(
            address.replace("127.0.0.1", "localhost"), grpc.ssl_channel_credentials(old.file.read_bytes())
        ) as channel,
    ):
        client = Peer(address, channel)
        await client.register()
        call = client.stream()
        await call.write(header())
        await next_answer(call)
        certificate.write_text("no certificate")
        await asyncio.sleep(tls.LOOK_S)  # the files are looked at once in this time
        assert await asyncio.to_thread(agrees, address, old)
        certificate.write_bytes(after.certificate.read_bytes())
        key.write_bytes(after.key.read_bytes())

        async def renewed() -> bool:
            return await asyncio.to_thread(agrees, address, new)

        await eventually(renewed)
        # The open stream is of the former certificate, and continues.
        await call.write(batch(0))
        assert (await next_answer(call)).acknowledged.next_sequence == 1
        await finish(call, 1)
        assert (await rest(call))[-1].HasField("sealed")


async def test_with_an_authority_for_clients_a_client_needs_its_certificate(started: Started, tmp_path: Path) -> None:
    authority, other = Authority(tmp_path / "ours", "ours"), Authority(tmp_path / "other", "other")
    server, ours, foreign = authority.sign("server"), authority.sign("client"), other.sign("client")
    changes = {"tls_certificate": server.certificate, "tls_key": server.key, "tls_client_ca": authority.file}
    async with started(**changes) as (_, address):
        target, roots = address.replace("127.0.0.1", "localhost"), authority.file.read_bytes()
        for identity, served in ((ours, True), (foreign, False), (None, False)):
            pair = (None, None) if identity is None else (identity.key.read_bytes(), identity.certificate.read_bytes())
            async with grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(roots, *pair)) as channel:
                if served:
                    assert await health_of(Peer(target, channel)) == health_pb2.HealthCheckResponse.SERVING
                else:
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await health_of(Peer(target, channel))
                    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_client_of_this_package_has_a_certificate_of_its_own(started: Started, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server, ours = authority.sign("server"), authority.sign("client")
    changes = {"tls_certificate": server.certificate, "tls_key": server.key, "tls_client_ca": authority.file}
    config = ClientConfig(call_deadline_s=3, connect_deadline_s=0.5)
    async with started(**changes) as (_, address):
        target = address.replace("127.0.0.1", "localhost")
        with_certificate, without = Tls(authority.file, ours.certificate, ours.key), Tls(authority.file)
        async with AsyncBulkClient(target, tls=with_certificate) as client:
            assert all([job.name.startswith("tenants/default/") async for job in client.list_jobs()])
        async with AsyncBulkClient(target, tls=without, config=config) as client:
            with pytest.raises(BulkError):
                await client.get_job("tenants/default/jobs/x")


async def test_a_key_of_another_certificate_is_named(server_settings: ServerSettings, tmp_path: Path) -> None:
    one, other = Authority(tmp_path).sign("one"), Authority(tmp_path).sign("other")
    status, line = await said(server_settings, tls_certificate=one.certificate, tls_key=other.key)
    assert status == 2
    assert "BULKGRPC_TLS_KEY" in line
    assert "the key is not that of the certificate" in line


async def test_a_half_configured_tls_is_named(server_settings: ServerSettings, tmp_path: Path) -> None:
    certificate = Authority(tmp_path).sign("server").certificate
    status, line = await said(server_settings, tls_certificate=certificate)
    assert status == 2
    assert "BULKGRPC_TLS_KEY" in line
