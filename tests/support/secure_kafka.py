"""A Kafka broker as organizations run it: TLS, authentication, and an authorizer that denies what is not granted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType
from confluent_kafka.admin._scram import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from bulkgrpc.stack.kafka import Kafka
from bulkgrpc.stack.model import LOOPBACK
from bulkgrpc.stack.part import Part
from bulkgrpc.stack.state import StateFile
from tests.support.certificates import Authority, Identity

PASSWORD = "correct horse battery staple"
_OAUTH = "org.apache.kafka.common.security.oauthbearer"


class _SecureKafka(Kafka):
    """The broker of the stack with two more listeners. Who connects without either is an administrator."""

    port_names: ClassVar[tuple[str, ...]] = (*Kafka.port_names, "kafka_sasl", "kafka_tls")

    def __init__(self, directory: Path, authority: Authority, identity: Identity) -> None:
        super().__init__(directory, 256)
        self._authority, self._identity = authority, identity

    def settings(self, ports: Mapping[str, int]) -> str:
        """Return the text of server.properties."""
        sasl, tls = f"SASL://{LOOPBACK}:{ports['kafka_sasl']}", f"TLS://{LOOPBACK}:{ports['kafka_tls']}"
        plain = f"PLAINTEXT://{LOOPBACK}:{ports['kafka']}"
        return f"""{super().settings(ports)}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_SSL,TLS:SSL
listeners={plain},{sasl},{tls},CONTROLLER://{LOOPBACK}:{ports["kafka_controller"]}
advertised.listeners={plain},{sasl},{tls}
sasl.enabled.mechanisms=SCRAM-SHA-256,OAUTHBEARER
listener.name.sasl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl.oauthbearer.sasl.jaas.config={_OAUTH}.OAuthBearerLoginModule required \\
  unsecuredLoginStringClaim_sub="broker";
ssl.keystore.type=PEM
ssl.keystore.location={self._identity.both}
ssl.truststore.type=PEM
ssl.truststore.location={self._authority.file}
listener.name.tls.ssl.client.auth=required
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
"""


@dataclass(frozen=True, slots=True)
class SecureKafka:
    """A running broker. plain: for administrators. sasl, tls: SCRAM or OAUTHBEARER over TLS, client certificates."""

    plain: str
    sasl: str
    tls: str
    authority: Authority
    client: Identity

    def add_user(self, name: str, password: str = PASSWORD) -> None:
        """Create a user of SCRAM-SHA-256."""
        credential = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
        added = UserScramCredentialUpsertion(name, credential, password.encode())
        # A client that is freed never answers.
        admin = self._admin
        for answer in admin.alter_user_scram_credentials([added]).values():
            answer.result(10)

    def grant(self, user: str, resource: ResourceType, name: str, *operations: AclOperation) -> None:
        """Grant a user operations on a resource of this name."""
        allowed = [
            AclBinding(
                resource, name, ResourcePatternType.LITERAL, f"User:{user}", "*", operation, AclPermissionType.ALLOW
            )
            for operation in operations
        ]
        admin = self._admin
        for answer in admin.create_acls(allowed).values():
            answer.result(10)

    @property
    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.plain, "log_level": 0})


@contextmanager
def secure_kafka(directory: Path) -> Iterator[SecureKafka]:
    """Run a broker in a new directory."""
    authority = Authority(directory / "certificates")
    state = StateFile(directory)
    broker = Part(_SecureKafka(directory / "kafka", authority, authority.sign("broker")), state)
    broker.start()
    try:
        ports = state.read().ports
        plain, sasl, tls = (f"{LOOPBACK}:{ports[name]}" for name in _SecureKafka.port_names if "controller" not in name)
        yield SecureKafka(plain, sasl, tls, authority, authority.sign("client"))
    finally:
        broker.stop()
