"""Three Kafka nodes, each broker and controller: replication 3, two replicas must have a message."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bulkgrpc.stack.kafka import Kafka, cluster_id, settings
from bulkgrpc.stack.part import Part
from bulkgrpc.stack.ports import choose_free
from bulkgrpc.stack.state import StateFile
from bulkgrpc.stack.words import LOOPBACK

NODES = 3
_FORMAT_WITHIN_S = 60


class Node(Kafka):
    """One of the nodes. number: from 1. controllers: the ports of all nodes' controllers, in order."""

    def __init__(self, directory: Path, number: int, controllers: Sequence[int], cluster: str) -> None:
        super().__init__(directory, 256)
        self._number = number
        self._controllers = controllers
        self._cluster = cluster

    def _format(self, ports: Mapping[str, int]) -> None:
        text = self._directory_settings(ports)
        formatting = self.directory / "format.properties"
        formatting.write_text(text)
        tool = ["kafka.tools.StorageTool", "format", "-t", self._cluster, "-c", str(formatting)]
        argv = [*self._java("-Xmx256m", "-XX:TieredStopAtLevel=1"), *tool]
        done = subprocess.run(argv, cwd=self.directory, capture_output=True, timeout=_FORMAT_WITHIN_S, check=False)
        if done.returncode:
            shutil.rmtree(self._data, ignore_errors=True)
            raise RuntimeError(done.stdout.decode() + done.stderr.decode())

    def _directory_settings(self, ports: Mapping[str, int]) -> str:
        voters = ",".join(f"{n}@{LOOPBACK}:{port}" for n, port in enumerate(self._controllers, 1))
        return (
            settings(ports)
            + f"node.id={self._number}\ncontroller.quorum.voters={voters}\n"
            + "default.replication.factor=3\nmin.insync.replicas=2\noffsets.topic.replication.factor=3\n"
            + "transaction.state.log.replication.factor=3\nunclean.leader.election.enable=false\n"
            + "controller.quorum.election.timeout.ms=1000\ncontroller.quorum.fetch.timeout.ms=2000\n"
        )

    def write_settings(self, path: Path, ports: Mapping[str, int]) -> None:
        """Write server.properties once more, as one of three."""
        path.write_text(self._directory_settings(ports))


class NodePart(Part):
    """A node whose controller's port is fixed: the others know it."""

    def __init__(self, node: Node, state: StateFile, port: int, controller: int) -> None:
        super().__init__(node, state, port)
        self._node = node
        self._fixed = {"kafka": port, "kafka_controller": controller}

    def _claim_ports(self) -> dict[str, int]:
        self._state.change(lambda state: state.with_ports(self._fixed))
        return self._fixed


@contextmanager
def cluster(directory: Path) -> Iterator[tuple[str, list[NodePart]]]:
    """Run three nodes; give the bootstrap servers and the parts."""
    brokers, controllers = ([choose_free() for _ in range(NODES)] for _ in range(2))
    name = cluster_id()
    parts = []
    with ExitStack() as undo:
        for index in range(NODES):
            home = directory / f"node-{index + 1}"
            home.mkdir(parents=True)
            node = _SettingNode(home / "kafka", index + 1, controllers, name)
            part = NodePart(node, StateFile(home), brokers[index], controllers[index])
            parts.append(part)
            undo.callback(part.kill)
        # None is ready before two are there.
        for part in parts:
            with part._state.locked():
                part._launch(lambda _: None)
        for part in parts:
            part.start()
        yield ",".join(f"{LOOPBACK}:{port}" for port in brokers), parts


class _SettingNode(Node):
    def prepare(self, ports: Mapping[str, int], enter: object) -> object:  # type: ignore[override]
        command = super().prepare(ports, enter)  # type: ignore[arg-type]
        self.write_settings(Path(command.argv[-1]), ports)
        return command
