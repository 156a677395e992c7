"""Three Kafka nodes, each broker and controller, with replication factor 3 and min.insync.replicas 2."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from bulkgrpc.stack.kafka import Kafka, cluster_id
from bulkgrpc.stack.model import LOOPBACK
from bulkgrpc.stack.ports import choose_free
from tests.support.waiting import wait_for

NODES = 3
HEAP_MIB = 256
_IN_SYNC_WITHIN_S = 60.0


class _Server(Kafka):
    """One of several. number: from 1. controllers: the ports of all nodes' controllers, in order."""

    def __init__(self, directory: Path, number: int, controllers: Sequence[int], cluster: str) -> None:
        super().__init__(directory, HEAP_MIB)
        self._number = number
        self._controllers = controllers
        self._cluster = cluster

    def settings(self, ports: Mapping[str, int]) -> str:
        """Return the usual settings, then those of one of several."""
        voters = ",".join(f"{number}@{LOOPBACK}:{port}" for number, port in enumerate(self._controllers, 1))
        return super().settings(ports) + (
            f"node.id={self._number}\ncontroller.quorum.voters={voters}\n"
            f"default.replication.factor={NODES}\noffsets.topic.replication.factor={NODES}\n"
            "min.insync.replicas=2\nunclean.leader.election.enable=false\n"
            "controller.quorum.election.timeout.ms=1000\ncontroller.quorum.fetch.timeout.ms=2000\n"
        )


class Node:
    """A node's process."""

    def __init__(self, server: _Server, ports: Mapping[str, int]) -> None:
        self._server = server
        self._ports = ports
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; `Cluster.await_in_sync` returns once it has caught up."""
        command = self._server.prepare(self._ports, lambda _phase: None)
        with command.log.open("ab") as log:
            self._running = subprocess.Popen(command.argv, cwd=command.directory, stdout=log, stderr=log)

    def kill(self) -> None:
        """End it by SIGKILL."""
        if self._running is not None:
            self._running.kill()
            self._running.wait()


class Cluster:
    """The nodes, in order."""

    def __init__(self, directory: Path) -> None:
        brokers, controllers = ([choose_free() for _ in range(NODES)] for _ in range(2))
        self.bootstrap = ",".join(f"{LOOPBACK}:{port}" for port in brokers)
        self.nodes = []
        name = cluster_id()
        for number, ports in enumerate(zip(brokers, controllers, strict=True), 1):
            server = _Server(directory / f"node-{number}", number, controllers, name)
            self.nodes.append(Node(server, dict(zip(Kafka.port_names, ports, strict=True))))

    def await_in_sync(self) -> None:
        """Return once all nodes are there and every partition has a replica in sync on each."""

        def in_sync() -> bool:
            # A client of its own: one that knows an older leader's epoch is refused for a while.
            admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
            try:
                found = admin.list_topics(timeout=5)
            except KafkaException:
                return False
            partitions = [p for topic in found.topics.values() for p in topic.partitions.values()]
            return len(found.brokers) == NODES and all(len(p.isrs) == NODES for p in partitions)

        assert wait_for(in_sync, _IN_SYNC_WITHIN_S), "the nodes do not get in sync"


@contextmanager
def cluster(directory: Path) -> Iterator[Cluster]:
    """Run three nodes; kill them at the end."""
    made = Cluster(directory)
    with ExitStack() as undo:
        for node in made.nodes:
            undo.callback(node.kill)
            node.start()
        made.await_in_sync()
        yield made
