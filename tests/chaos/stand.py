"""A stack for faults: Kafka has separate listeners for servers and for workers, which lead through proxies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bulkgrpc.stack import Stack
from bulkgrpc.stack.kafka import Kafka
from bulkgrpc.stack.model import LOOPBACK
from bulkgrpc.stack.part import Part
from bulkgrpc.stack.ports import choose_free

SESSION_MS = 3000


@dataclass(frozen=True, slots=True)
class Listener:
    """Another listener of the broker. port: where it listens; advertised: where it says that it does."""

    name: str
    port: int
    advertised: int


class ProxiedKafka(Kafka):
    """A broker with more listeners, each advertised under a proxy's port."""

    def __init__(self, directory: Path, heap_mib: int, listeners: tuple[Listener, ...]) -> None:
        super().__init__(directory, heap_mib)
        self._listeners = listeners

    def settings(self, ports: Mapping[str, int]) -> str:
        """Return the usual settings, then what differs."""
        main = f"PLAINTEXT://{LOOPBACK}:{ports['kafka']}"
        extra = [
            (f"{one.name}://{LOOPBACK}:{one.port}", f"{one.name}://{LOOPBACK}:{one.advertised}")
            for one in self._listeners
        ]
        kinds = "".join(f",{one.name}:PLAINTEXT" for one in self._listeners)
        return (
            super().settings(ports) + f"listeners={main},CONTROLLER://{LOOPBACK}:{ports['kafka_controller']}"
            f"{''.join(',' + here for here, _ in extra)}\n"
            f"advertised.listeners={main}{''.join(',' + said for _, said in extra)}\n"
            f"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT{kinds}\n"
            # Deleted records go at once: the test of a lost span waits for them.
            "log.initial.task.delay.ms=500\nlog.retention.check.interval.ms=1000\n"
            # A worker that was killed is missed soon: many are.
            f"group.consumer.session.timeout.ms={SESSION_MS}\ngroup.consumer.heartbeat.interval.ms=500\n"
        )


class ProxiedStack(Stack):
    """A stack whose broker has listeners for servers and workers. server, worker: those listeners."""

    def __init__(self, data_dir: Path, server_port: int, worker_port: int) -> None:
        super().__init__(data_dir)
        self.server = Listener("SERVER", choose_free(), server_port)
        self.worker = Listener("WORKER", choose_free(), worker_port)
        kafka = ProxiedKafka(self.data_dir / "kafka", 384, (self.server, self.worker))
        self._parts = (Part(kafka, self._state), *self._parts[1:])
