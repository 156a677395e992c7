"""A running service for faults: stack, proxies, a server, workers. A process that ends by itself is started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka.admin import AdminClient
from psycopg.conninfo import make_conninfo

from bulkgrpc.client import AsyncBulkClient, Refused
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.postgres import schema
from bulkgrpc.postgres.connection import connect
from bulkgrpc.stack.ports import choose_free
from tests.blast.stand import SET_UP
from tests.chaos import evidence
from tests.chaos.datasets import BOUND_TABLE, all_datasets
from tests.chaos.history import History
from tests.chaos.proxy import Mood, Proxies, Proxy
from tests.chaos.stand import ProxiedStack
from tests.chaos.victims import Victims
from tests.support.ends import end_offsets
from tests.support.processes import Process
from tests.support.role import PASSWORD, ROLE, add_service_role

TOPIC = "bulkgrpc.records"
GROUP = "bulkgrpc-workers"
PAIRS = ("client-server", "server-kafka", "server-postgres", "server-redis", "worker-kafka", "worker-postgres")
TEND_S = 0.1
REGISTERED_WITHIN_S = 60.0
_TAIL_CHARS = 600
Connection = psycopg.Connection[tuple[Any, ...]]


class Rig:
    """The parts, and operations on them. Created by `rig`."""

    def __init__(self, stack: ProxiedStack, proxies: dict[str, Proxy], address: str, logs: Path) -> None:
        self.stack = stack
        self.proxies = proxies
        self.address = address
        self.bootstrap = stack.addresses.kafka
        self.postgres = stack.addresses.postgres
        # As whom the server and the workers connect: no superuser.
        self.service = make_conninfo(self.postgres, user=ROLE, password=PASSWORD)
        # An administrator of the broker, through no proxy.
        self.admin = AdminClient({"bootstrap.servers": stack.addresses.kafka, "log_level": 0})
        self.history = History(logs / "history")
        self.victims: Victims | None = None
        self.server: Process
        self.workers: list[Process] = []
        self.mutant = "none"
        self.worker_environment: dict[str, str] = {}
        self.ended: list[tuple[str, int]] = []
        self._logs = logs
        self._ports: dict[str, int] = {}
        self._quiet: set[str] = set()
        self._lock = threading.RLock()

    def launch(self, ports: dict[str, int], listen: int, workers: int) -> None:
        """Start the server and the workers, all through the proxies' ports."""
        self._ports = ports
        arguments = ("bulkgrpc.server.process", "--listen", f"127.0.0.1:{listen}")
        self.server = Process(
            "tests.chaos.mutants", ("none", *arguments), self._environment("server"), self._logs / "server.log"
        )
        self.server.start()
        for _ in range(workers):
            self.add_worker()

    def add_worker(self) -> Process:
        """Start one more worker."""
        name = f"worker-{len(self.workers)}"
        worker = Process("tests.chaos.mutants", (), {}, self._logs / f"{name}.log")
        self._dress(worker)
        worker.start()
        with self._lock:
            self.workers.append(worker)
        return worker

    def remove_worker(self, worker: Process) -> None:
        """Let a worker end by SIGTERM."""
        with self._lock:
            self.workers.remove(worker)
        worker.kill(signal.SIGTERM)

    def end(self) -> None:
        """Kill what runs."""
        for process in (self.server, *self.workers):
            with contextlib.suppress(ProcessLookupError):
                if process.ended is None:
                    os.kill(process.pid, signal.SIGCONT)
            process.stop()

    def signal(self, process: Process, number: signal.Signals) -> None:
        """Send a signal, without waiting for what it does."""
        with contextlib.suppress(ProcessLookupError):
            if process.ended is None:
                os.kill(process.pid, number)

    @contextmanager
    def untended(self, *processes: Process) -> Iterator[None]:
        """Do not restart these processes when they end."""
        names = {process.log.stem for process in processes}
        self._quiet |= names
        try:
            yield
        finally:
            self._quiet -= names

    @contextmanager
    def another_server(self) -> Iterator[str]:
        """Run a second server, which reaches the parts through no proxy; yield its address."""
        address = f"127.0.0.1:{choose_free()}"
        direct = {
            **self.server.environment,
            "BULKGRPC_KAFKA": self.bootstrap,
            "BULKGRPC_POSTGRES": self.service,
            "BULKGRPC_REDIS": self.stack.addresses.redis,
        }
        arguments = ("none", "bulkgrpc.server.process", "--listen", address)
        other = Process("tests.chaos.mutants", arguments, direct, self._logs / "server-2.log")
        other.start()
        try:
            yield address
        finally:
            other.stop()

    @contextmanager
    def clients_of(self, address: str) -> Iterator[None]:
        """Lead the clients to another server meanwhile."""
        proxy = self.proxies["client-server"]
        usual, proxy.target_port = proxy.target_port, int(address.rpartition(":")[2])
        proxy.reset()
        try:
            yield
        finally:
            proxy.target_port = usual
            proxy.reset()

    def disguise(self, mutant: str) -> None:
        """Restart everything with a protection switched off; `none`: as it is."""
        self.mutant = mutant
        for process in (*self.workers, self.server):
            process.stop()
        self.tend()

    def move_to(self, bootstrap: str) -> None:
        """Use another, new Kafka from now on: with a group of its own, and an empty ledger."""
        self.bootstrap = bootstrap
        with self.database() as connection, connection.transaction():
            connection.execute("SET LOCAL session_replication_role = replica")
            connection.execute("DELETE FROM bulk.offsets")
            connection.execute("DELETE FROM bulk.topics")
            connection.execute("DELETE FROM bulk.partition_logs")
        more = {"BULKGRPC_KAFKA": bootstrap, "BULKGRPC_REPLICATION": "3"}
        self.worker_environment.update(more)
        self.server.environment = {**self.server.environment, **more}
        self.disguise("none")

    def stopped(self) -> dict[int, str]:
        """Return the partitions that workers stopped, and the cause of each; note them if there are any."""
        with self.database() as connection:
            found = connection.execute(
                "SELECT partition, stop_cause FROM bulk.partition_logs WHERE stop_cause IS NOT NULL"
            ).fetchall()
        if found:
            self.history.note("rig", "stopped", partitions=dict(found))
        return dict(found)

    def repair_ledger(self) -> None:
        """Set every partition of the ledger to its end, and end all jobs: a mutant can leave any position."""
        for process in self.workers:
            process.stop()
        with self.database() as connection, connection.transaction():
            connection.execute("SET LOCAL session_replication_role = replica")
            for place in self.ends().items():
                connection.execute("UPDATE bulk.offsets SET next_offset = %s WHERE partition = %s", place[::-1])
            ended = "state = 6, end_time = now(), expired = expired + staged, staged = 0"
            connection.execute(f"UPDATE bulk.jobs SET {ended} WHERE state < 3".encode())
            # Workers record the topic that is there.
            connection.execute("DELETE FROM bulk.topics")

    def tend(self) -> None:
        """Restart the processes that ended, and note that they ended."""
        with self._lock:
            members = [self.server, *self.workers]
        for process in members:
            code = process.ended
            if code is None or process.log.stem in self._quiet:
                continue
            self.revive(process)

    def revive(self, process: Process) -> None:
        """Start a process again, if it has ended."""
        with self._lock:
            code = process.ended
            if code is None:
                return
            tail = process.log.read_text()[-_TAIL_CHARS:]
            self.ended.append((process.log.stem, code))
            self.history.note("rig", "process", name=process.log.stem, code=code, tail=tail)
            self._dress(process)
            with contextlib.suppress(AssertionError, queue.Empty):
                process.start()

    async def tending(self) -> None:
        """Tend until cancelled."""
        while True:
            await asyncio.to_thread(self.tend)
            await asyncio.sleep(TEND_S)

    def renew_history(self, name: str) -> History:
        """Begin the history of another run."""
        self.history = History(self._logs / f"history-{name}")
        self.ended = []
        return self.history

    @contextmanager
    def database(self) -> Iterator[Connection]:
        """A connection that leads through no proxy."""
        with connect(self.postgres, "chaos") as connection:
            yield connection

    def ends(self) -> dict[int, int]:
        """Return the end of each partition: the offset of its next message."""
        return end_offsets(self.bootstrap, TOPIC, 4)

    def behind(self) -> str:
        """Return what is still to be done, as text; "" if nothing is."""
        try:
            ends = self.ends()
            with self.database() as connection:
                stands = dict(connection.execute("SELECT partition, next_offset FROM bulk.offsets").fetchall())
                open_jobs = connection.execute("SELECT count(*) FROM bulk.jobs WHERE state = 2").fetchone()
                parked = connection.execute("SELECT count(*) FROM bulk.parked").fetchone()
        except Exception as error:  # noqa: BLE001 - whatever keeps us from looking is said
            return f"cannot look: {error!r}"
        lag = {partition: end - stands.get(partition, 0) for partition, end in ends.items()}
        if any(lag.values()):
            return f"lag {lag}"
        if parked and parked[0]:
            return f"{parked[0]} messages are parked"
        return f"{open_jobs[0]} sealed jobs have not ended" if open_jobs and open_jobs[0] else ""

    def _dress(self, process: Process) -> None:
        """Set the arguments and the environment that a process is started with."""
        if process is getattr(self, "server", None):
            process.arguments = (self.mutant, *process.arguments[1:])
            return
        process.arguments = (self.mutant, "workers.process")
        process.environment = {**self._environment("worker"), **self.worker_environment}

    def _environment(self, who: str) -> dict[str, str]:
        ports = self._ports
        found = {
            "BULKGRPC_KAFKA": f"127.0.0.1:{ports[f'{who}-kafka']}",
            "BULKGRPC_POSTGRES": make_conninfo(self.service, port=ports[f"{who}-postgres"]),
            "BULKGRPC_DRAIN_S": "5",
        }
        if who == "server":
            found["BULKGRPC_REDIS"] = f"redis://127.0.0.1:{ports['server-redis']}/0"
        return found


@contextmanager
def rig(data_dir: Path, logs: Path, workers: int = 2) -> Iterator[Rig]:
    """Run everything; end and remove it afterwards."""
    with ExitStack() as undo:
        proxies = undo.enter_context(Proxies())
        opened = {pair: proxies.open() for pair in PAIRS}
        ports = {pair: proxy.port for pair, proxy in opened.items()}
        stack = ProxiedStack(data_dir, ports["server-kafka"], ports["worker-kafka"])
        undo.callback(stack.destroy)
        stack.up()
        schema.migrate(add_service_role(stack.addresses.postgres))
        listen = choose_free()
        postgres, redis = (
            int(re.findall(r":(\d+)/", url)[-1]) for url in (stack.addresses.postgres, stack.addresses.redis)
        )
        targets = {
            "client-server": listen,
            "server-kafka": stack.server.port,
            "server-postgres": postgres,
            "server-redis": redis,
            "worker-kafka": stack.worker.port,
            "worker-postgres": postgres,
        }
        for pair, target in targets.items():
            opened[pair].target_port = target
        running = Rig(stack, opened, f"127.0.0.1:{ports['client-server']}", logs)
        undo.callback(running.end)
        running.launch(ports, listen, workers)
        with running.database() as connection:
            connection.execute(BOUND_TABLE.format(role=ROLE))
        asyncio.run(_register(running.address))
        with running.database() as connection:
            connection.execute(evidence.SET_UP)
            connection.execute(SET_UP)
        yield running


def calm(running: Rig) -> None:
    """Make every proxy pass everything unchanged."""
    for proxy in running.proxies.values():
        proxy.set(Mood())


async def _register(address: str) -> None:
    async with AsyncBulkClient(address) as client:
        for dataset in all_datasets().values():
            async with asyncio.timeout(REGISTERED_WITHIN_S):
                await _until_accepted(client, dataset)


async def _until_accepted(client: AsyncBulkClient, dataset: Dataset) -> None:
    """Register a dataset; again while the machine is too busy to compile its rules in time."""
    while True:
        try:
            await client.register_dataset(dataset.descriptors, dataset.message_type)
        except Refused:
            await asyncio.sleep(TEND_S)
        else:
            return
