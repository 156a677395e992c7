"""A stack with TLS and passwords, as `bulkgrpc up --secure` starts it.

Kafka takes SASL over TLS only, PostgreSQL and Redis take TLS only, where a server with TLS is installed: those of the
wheels have none.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

from bulkgrpc.kafka.probe import why_not_ready
from bulkgrpc.kafka_properties import variable_of
from bulkgrpc.redis.probe import why_no_answer
from bulkgrpc.stack.credentials import Credentials
from bulkgrpc.stack.kafka import Kafka
from bulkgrpc.stack.model import LOOPBACK, Addresses, Phase, Ports, Report, StackError, unreported
from bulkgrpc.stack.part import Part
from bulkgrpc.stack.postgres import Postgres
from bulkgrpc.stack.postgres_owner import postgres_owner
from bulkgrpc.stack.process import Command
from bulkgrpc.stack.stack import KAFKA_HEAP_MIB, Stack
from bulkgrpc.stack.valkey import Valkey, settings

TENANT = "default"
_USER = "bulkgrpc"
_PROBE_TIMEOUT_S = 2.0
_DEBIAN_POSTGRES = Path("/usr/lib/postgresql")
_PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule"
_RIGHTS = (
    "-@all +eval +get +set +setrange +hget +hgetall +hmget +hset +hsetnx +expire +del +multi +exec +hello +ping "
    "+config|get ~bulk:*"
)


class SecureKafka(Kafka):
    """The broker with SASL over TLS; its controller wants the stack's certificate."""

    def __init__(self, directory: Path, heap_mib: int, credentials: Credentials) -> None:
        super().__init__(directory, heap_mib)
        self._credentials = credentials

    def prepare(self, ports: Mapping[str, int], enter: Callable[[Phase], None]) -> Command:
        """Prepare the broker in a directory that only its owner can read: its settings have the password."""
        self.directory.mkdir(mode=0o700, exist_ok=True)
        return super().prepare(ports, enter)

    def settings(self, ports: Mapping[str, int]) -> str:
        """Return the text of server.properties."""
        broker, controller = f"{LOOPBACK}:{ports['kafka']}", f"{LOOPBACK}:{ports['kafka_controller']}"
        password = self._credentials.password("kafka")
        login = f'username="{_USER}" password="{password}" user_{_USER}="{password}"'
        return f"""{super().settings(ports)}
inter.broker.listener.name=SECURE
listener.security.protocol.map=SECURE:SASL_SSL,CONTROLLER:SSL
listeners=SECURE://{broker},CONTROLLER://{controller}
advertised.listeners=SECURE://{broker}
sasl.enabled.mechanisms=PLAIN
sasl.mechanism.inter.broker.protocol=PLAIN
listener.name.secure.plain.sasl.jaas.config={_PLAIN} required {login};
listener.name.controller.ssl.client.auth=required
ssl.keystore.type=PEM
ssl.keystore.location={self._credentials.both}
ssl.truststore.type=PEM
ssl.truststore.location={self._credentials.authority}
"""

    def why_not_ready(self, port: int) -> str | None:
        """Fetch the metadata, as a client with the password."""
        return why_not_ready(LOOPBACK, port, _PROBE_TIMEOUT_S, kafka_properties(self._credentials))


class SecurePostgres(Postgres):
    """A PostgreSQL of Debian with TLS; if there is none, the wheel's, without."""

    def __init__(self, directory: Path, credentials: Credentials) -> None:
        self._tls_programs = debian_postgres()
        super().__init__(directory, self._tls_programs)
        self._credentials = credentials

    def prepare(self, ports: Mapping[str, int], enter: Callable[[Phase], None]) -> Command:
        """Prepare the cluster, give it the certificate, and accept connections with TLS only."""
        command = super().prepare(ports, enter)
        if self._tls_programs is None:
            return command
        data, owner = self.directory / "data", postgres_owner()
        shutil.copy(self._credentials.certificate, data / "server.crt")
        shutil.copy(self._credentials.key, data / "server.key")
        (data / "pg_hba.conf").write_text(f"hostssl all all {LOOPBACK}/32 scram-sha-256\n")
        with (data / "postgresql.conf").open("a") as file:
            file.write("ssl = on\n")
        for name in ("server.crt", "server.key", "pg_hba.conf"):
            (data / name).chmod(0o600)
            if owner is not None:
                shutil.chown(data / name, owner.uid, owner.gid)
        return command

    def _url(self, port: int, database: str) -> str:
        url = super()._url(port, database)
        if self._tls_programs is None:
            return url
        return f"{url}?sslmode=verify-full&sslrootcert={quote(str(self._credentials.authority))}"


class SecureRedis(Valkey):
    """A Redis of Debian with TLS and a user of few rights; if there is none, the wheel's Valkey, without TLS."""

    def __init__(self, directory: Path, credentials: Credentials) -> None:
        super().__init__(directory)
        self._credentials = credentials
        self._redis = redis_with_tls()

    def prepare(self, ports: Mapping[str, int], enter: Callable[[Phase], None]) -> Command:
        """Write the configuration. It has the password as a hash only."""
        command = super().prepare(ports, enter)
        port, made = ports["redis"], self._credentials
        hashed = hashlib.sha256(made.password("redis").encode()).hexdigest()
        text = f"{settings(port)}user default off\nuser {_USER} on #{hashed} {_RIGHTS}\n"
        if self._redis is not None:
            text += (
                f"port 0\ntls-port {port}\ntls-auth-clients no\ntls-ca-cert-file {made.authority}\n"
                f"tls-cert-file {made.certificate}\ntls-key-file {made.key}\n"
            )
        self._settings.write_text(text)
        return command if self._redis is None else Command([self._redis, *command.argv[1:]], self.directory, self.log)

    def process_arguments(self) -> tuple[str, str]:
        """Return the program and its last argument."""
        return ("valkey-server" if self._redis is None else "redis-server"), str(self._settings)

    def address(self, port: int) -> str:
        """Return the Redis URL, with the password."""
        login = f"{_USER}:{self._credentials.password('redis')}@{LOOPBACK}:{port}/0"
        if self._redis is None:
            return f"redis://{login}"
        return f"rediss://{login}?ssl_ca_certs={quote(str(self._credentials.authority))}"

    def why_not_ready(self, port: int) -> str | None:
        """Send PING as the service's user."""
        return why_no_answer(self.address(port), _PROBE_TIMEOUT_S)


class SecureStack(Stack):
    """A stack whose parts want TLS and a password. data_dir, ports, kafka_heap_mib: as of Stack."""

    def __init__(self, data_dir: Path, ports: Ports | None = None, *, kafka_heap_mib: int = KAFKA_HEAP_MIB) -> None:
        super().__init__(data_dir, ports or Ports())
        asked = ports or Ports()
        self.credentials = Credentials(self.data_dir / "secure")
        self._parts = (
            Part(SecureKafka(self.data_dir / "kafka", kafka_heap_mib, self.credentials), self._state, asked.kafka),
            Part(SecurePostgres(self.data_dir / "postgres", self.credentials), self._state, asked.postgres),
            Part(SecureRedis(self.data_dir / "redis", self.credentials), self._state, asked.redis),
        )

    def up(self, report: Report = unreported) -> Addresses:
        """Start the parts as `Stack.up` does; the first time, make their credentials.

        Raises StackError if the data directory is of a stack without them.
        """
        if self._state.exists() and not self.credentials.exist():
            raise StackError(
                f"the stack in {self.data_dir} was started without --secure: choose another --data-dir, or run "
                "`bulkgrpc down --delete` first"
            )
        self._make_directory()
        self.credentials.ensure()
        return super().up(report)

    def destroy(self) -> None:
        """Stop all parts, and remove their data and credentials."""
        self.down()
        shutil.rmtree(self.credentials.directory, ignore_errors=True)
        super().destroy()

    def environment(self) -> dict[str, str]:
        """Return the variables of servers, workers, clients and the CLI. They contain secrets."""
        made = self.credentials
        return {
            **self.addresses.environment(),
            **{variable_of(name): value for name, value in kafka_properties(made).items()},
            "BULKGRPC_TLS_CERTIFICATE": str(made.certificate),
            "BULKGRPC_TLS_KEY": str(made.key),
            "BULKGRPC_AUTH": "jwt",
            "BULKGRPC_JWKS": str(made.key_set),
            "BULKGRPC_TLS_CA": str(made.authority),
            "BULKGRPC_TENANT": TENANT,
            "BULKGRPC_TOKEN": made.token(TENANT),
        }


def without_tls() -> list[str]:
    """Return a line for each part that has no TLS, because no server with it is installed."""
    found = []
    if debian_postgres() is None:
        found.append("PostgreSQL runs without TLS: the one of the wheel has none; apt-get install postgresql")
    if redis_with_tls() is None:
        found.append("Valkey runs without TLS: the one of the wheel has none; apt-get install redis-server")
    return found


def is_secure(data_dir: Path) -> bool:
    """Return whether the stack of a data directory was started with --secure."""
    return Credentials(data_dir.resolve() / "secure").exist()


def kafka_properties(credentials: Credentials) -> dict[str, str]:
    """Return the properties of librdkafka for the broker of a secure stack."""
    return {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "sasl.username": _USER,
        "sasl.password": credentials.password("kafka"),
        "ssl.ca.location": str(credentials.authority),
    }


def debian_postgres() -> Path | None:
    """Return the `bin` directory of the newest PostgreSQL of Debian; None if there is none."""
    found = [path.parent for path in _DEBIAN_POSTGRES.glob("*/bin/postgres")]
    return max(found, key=lambda path: int(path.parent.name), default=None)


def redis_with_tls() -> str | None:
    """Return the program of an installed Redis; None if there is none. Debian's is built with TLS."""
    return shutil.which("redis-server")
