"""Kafka: one node in KRaft mode, broker and controller in one process."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import ClassVar

from bulkgrpc.kafka.probe import why_not_ready
from bulkgrpc.stack.jars import install, jars_directory
from bulkgrpc.stack.java import java
from bulkgrpc.stack.model import LOOPBACK, Phase, StackError
from bulkgrpc.stack.process import Command, last_line
from bulkgrpc.stack.server import Server
from bulkgrpc.stack.space import shortage

_PROBE_TIMEOUT_S = 2.0
_FORMAT_TIMEOUT_S = 60.0
# A start takes two seconds, mostly in the JVM's compiler: more threads for the collector would not help.
_JVM = ("-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true")


class Kafka(Server):
    """An Apache Kafka broker, run from the jars that `jars.install` downloads."""

    name = "kafka"
    title = "Kafka"
    port_names: ClassVar[tuple[str, ...]] = ("kafka", "kafka_controller")

    def __init__(self, directory: Path, heap_mib: int) -> None:
        super().__init__(directory)
        self._heap_mib = heap_mib
        self._cluster = cluster_id()  # used when the directory is formatted
        self._data = directory / "data"
        self._file = directory / "server.properties"
        self._output = directory / "kafka.out"

    def is_prepared(self) -> bool:
        """Return whether the log directory is formatted."""
        return self._data.is_dir()

    def prepare(self, ports: Mapping[str, int], enter: Callable[[Phase], None]) -> Command:
        """Download the jars if they are missing, format the log directory if it is new, write the configuration."""
        if not jars_directory().is_dir():
            enter(Phase.INSTALLING)
            install()
        self.directory.mkdir(exist_ok=True)
        if not self.is_prepared():
            enter(Phase.PREPARING)
            self._format(ports)
        self._file.write_text(self.settings(ports))
        argv = self._java(f"-Xmx{self._heap_mib}m", f"-Xms{self._heap_mib // 2}m")
        return Command([*argv, "kafka.Kafka", str(self._file)], self.directory, self._output)

    @property
    def logs(self) -> tuple[Path, ...]:
        """Kafka's own log, and the output of the JVM, which has the error if Kafka's logging did not start."""
        return self.log, self._output

    def process_arguments(self) -> tuple[str, str]:
        """Return the program and its last argument."""
        return "java", str(self._file)

    def address(self, port: int) -> str:
        """Return the bootstrap servers."""
        return f"{LOOPBACK}:{port}"

    def why_not_ready(self, port: int) -> str | None:
        """Fetch the metadata. The broker is in it once it is registered and not fenced."""
        return why_not_ready(LOOPBACK, port, _PROBE_TIMEOUT_S)

    def settings(self, ports: Mapping[str, int]) -> str:
        """Return the text of server.properties. If a name is repeated, the last value counts.

        The voters are static: ports may change between two starts, and a stored voter set would keep the old ones. The
        data directory is relative to the broker's working directory: the file's format allows no comma and no umlaut.
        """
        broker, controller = f"{LOOPBACK}:{ports['kafka']}", f"{LOOPBACK}:{ports['kafka_controller']}"
        return f"""process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{controller}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
listeners=PLAINTEXT://{broker},CONTROLLER://{controller}
advertised.listeners=PLAINTEXT://{broker}
log.dirs=data
{_FIXED_SETTINGS}"""

    def _java(self, *options: str) -> list[str]:
        logging = resources.files(__package__).joinpath("kafka-log4j2.properties")
        properties = (f"-Dlog4j2.configurationFile={logging}", f"-Dbulkgrpc.kafka.log={self.log}")
        return [java(), *_JVM, *options, *properties, "-cp", f"{jars_directory() / 'libs'}/*"]

    def _format(self, ports: Mapping[str, int]) -> None:
        # Formatted in another directory, then renamed: a data directory is complete or absent.
        draft = Path(tempfile.mkdtemp(prefix="format.", dir=self.directory))
        output = self.directory / "format.out"
        try:
            formatting = draft / "server.properties"
            formatting.write_text(self.settings(ports))
            tool = ["kafka.tools.StorageTool", "format", "-t", self._cluster, "-c", str(formatting)]
            argv = [*self._java("-Xmx256m", "-XX:TieredStopAtLevel=1"), *tool]
            with output.open("wb") as file:
                subprocess.run(argv, cwd=draft, stdout=file, stderr=file, timeout=_FORMAT_TIMEOUT_S, check=True)
            (draft / "data").rename(self._data)
        except subprocess.SubprocessError as error:
            raise StackError(
                f"Kafka's storage could not be formatted: {last_line(output)}{shortage(self.directory)} (log: {output})"
            ) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def cluster_id() -> str:
    """Return a new cluster ID in Kafka's form: 16 random bytes in URL-safe base64, not starting with a dash."""
    while True:
        text = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text


# broker.session.timeout.ms: after a kill -9, a new broker cannot register until the old session ends, 9 s by default.
# The group coordinator's minimum times are low so that tests detect a dead consumer within seconds.
_FIXED_SETTINGS = """auto.create.topics.enable=false
num.partitions=4
message.max.bytes=8388608
replica.fetch.max.bytes=8388608
socket.request.max.bytes=104857600
log.segment.bytes=268435456
log.retention.hours=72
log.cleaner.dedupe.buffer.size=16777216
num.recovery.threads.per.data.dir=2
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
group.coordinator.rebalance.protocols=classic,consumer
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=6000
group.consumer.min.heartbeat.interval.ms=500
group.consumer.heartbeat.interval.ms=1000
"""
