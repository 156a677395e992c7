"""Kafka as organizations run it: TLS, passwords, tokens, certificates, topics of an operator, and few rights."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclOperation
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewTopic

from bulkgrpc.client import AsyncBulkClient, Batch, JobState
from bulkgrpc.datasets.sources import compile_proto, proto_root
from bulkgrpc.kafka import topic_config
from bulkgrpc.kafka.connection import KafkaMisconfigured, KafkaUnavailable
from bulkgrpc.kafka.dead_letters import DeadLetters
from bulkgrpc.kafka.topics import NoRight, ensure_topic
from bulkgrpc.kafka_properties import variable_of
from bulkgrpc.limits import BATCH_BYTES_MAX, KAFKA_MESSAGE_BYTES_MAX
from bulkgrpc.server.cannot_serve import WRONG_SETTINGS, CannotServe
from bulkgrpc.server.serving import serving
from bulkgrpc.settings import ServerSettings, StackSettings, load
from bulkgrpc.stack import Addresses
from tests.conftest import new_data_dir
from tests.integration.server_parts import server_database, server_settings
from tests.support.examples import reading_batch
from tests.support.processes import service
from tests.support.secure_kafka import PASSWORD, SecureKafka, secure_kafka

__all__ = ["server_database", "server_settings"]

USER = "ingest"


@pytest.fixture(scope="module")
def broker() -> Iterator[SecureKafka]:
    directory = new_data_dir()
    with secure_kafka(directory) as running:
        running.add_user(USER)
        yield running
    shutil.rmtree(directory)


@pytest.fixture
def scram(broker: SecureKafka) -> dict[str, str]:
    return {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-256",
        "sasl.username": USER,
        "sasl.password": PASSWORD,
        "ssl.ca.location": str(broker.authority.file),
    }


def settings(kafka: str, properties: dict[str, str], **more: object) -> StackSettings:
    given: dict[str, object] = {"topic": f"topic-{uuid.uuid4().hex[:8]}", "partitions": 2, **more}
    return load(StackSettings, kafka=kafka, kafka_properties=properties, **given)


def created(broker: SecureKafka, **more: object) -> StackSettings:
    """A topic that an operator made."""
    found = settings(broker.plain, {}, **more)
    ensure_topic(found)
    return found


def test_certificates_of_clients_are_accepted(broker: SecureKafka) -> None:
    trusted = {
        "security.protocol": "SSL",
        "ssl.ca.location": str(broker.authority.file),
        "ssl.certificate.location": str(broker.client.certificate),
        "ssl.key.location": str(broker.client.key),
    }
    topic = created(broker).topic
    broker.grant("CN=client", ResourceType.TOPIC, topic, AclOperation.DESCRIBE)
    assert ensure_topic(settings(broker.tls, trusted, topic=topic)) == 2


def test_the_token_of_a_command_is_accepted(broker: SecureKafka) -> None:
    claims = {"sub": "robot", "iat": int(time.time()), "exp": int(time.time()) + 600}
    token = jwt.encode(claims, "", "none")
    topic = created(broker).topic
    broker.grant("robot", ResourceType.TOPIC, topic, AclOperation.DESCRIBE)
    properties = {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "OAUTHBEARER",
        "ssl.ca.location": str(broker.authority.file),
    }
    command = f"{sys.executable} -c 'print(\"{token}\")'"
    assert ensure_topic(settings(broker.sasl, properties, topic=topic, kafka_token_command=command)) == 2


def test_a_token_command_that_fails_is_the_reason(broker: SecureKafka) -> None:
    properties = {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "OAUTHBEARER",
        "ssl.ca.location": str(broker.authority.file),
    }
    command = f"{sys.executable} -c 'raise SystemExit(\"not logged in\")'"
    with pytest.raises(KafkaUnavailable, match=r"authentication failed: .*not logged in"):
        ensure_topic(settings(broker.sasl, properties, kafka_token_command=command))


WRONG = {
    "password": ("sasl", {"sasl.password": "x"}, "authentication failed: .*BULKGRPC_KAFKA_SASL_PASSWORD"),
    "user": ("sasl", {"sasl.username": "nobody"}, "authentication failed: .*BULKGRPC_KAFKA_SASL_USERNAME"),
    "mechanism": ("sasl", {"sasl.mechanism": "PLAIN"}, "mechanisms: SCRAM-SHA-256,.*BULKGRPC_KAFKA_SASL_MECHANISM"),
    "authority": ("sasl", {"ssl.ca.location": ""}, "TLS failed: .*BULKGRPC_KAFKA_SSL_CA_LOCATION"),
    "no TLS": ("sasl", {"security.protocol": "SASL_PLAINTEXT"}, "may expect TLS.*BULKGRPC_KAFKA_SECURITY_PROTOCOL"),
    "no security": ("sasl", {"security.protocol": "PLAINTEXT"}, "may expect TLS.*BULKGRPC_KAFKA_SECURITY_PROTOCOL"),
    "TLS to a plain listener": ("plain", {}, "TLS failed: .*BULKGRPC_KAFKA_SECURITY_PROTOCOL"),
    "no certificate": ("tls", {"security.protocol": "SSL"}, "not accept our certificate.*SSL_CERTIFICATE_LOCATION"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_soon(broker: SecureKafka, scram: dict[str, str], what: str) -> None:
    listener, change, reason = WRONG[what]
    properties = {name: value for name, value in {**scram, **change}.items() if value}
    begun_s = time.monotonic()
    with pytest.raises(KafkaUnavailable, match=reason):
        ensure_topic(settings(getattr(broker, listener), properties))
    assert time.monotonic() - begun_s < 8


@pytest.mark.parametrize(
    ("kafka", "reason"),
    [
        ("127.0.0.1:1", "the connection is refused: .*BULKGRPC_KAFKA"),
        ("nowhere.invalid:9092", "Failed to resolve 'nowhere.invalid:9092'.*BULKGRPC_KAFKA"),
    ],
)
def test_an_address_without_a_broker_is_said_soon(kafka: str, reason: str) -> None:
    with pytest.raises(KafkaUnavailable, match=reason):
        ensure_topic(settings(kafka, {}))


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        ({"sasl.mechnism": "PLAIN"}, "BULKGRPC_KAFKA_SASL_MECHNISM, or sasl.mechnism .*No such configuration property"),
        ({"security.protocol": "TLS"}, 'BULKGRPC_KAFKA_SECURITY_PROTOCOL, .*Invalid value "TLS"'),
        ({"security.protocol": "SSL", "ssl.ca.location": "/nowhere"}, "BULKGRPC_KAFKA_SSL_CA_LOCATION, "),
    ],
)
def test_a_property_that_is_wrong_is_named(broker: SecureKafka, properties: dict[str, str], reason: str) -> None:
    with pytest.raises(KafkaMisconfigured, match=reason):
        ensure_topic(settings(broker.plain, properties))


def test_a_topic_that_may_not_be_created_is_asked_for(broker: SecureKafka, scram: dict[str, str]) -> None:
    wanted = settings(broker.sasl, scram)
    with pytest.raises(NoRight, match=r"grant DESCRIBE on it.*kafka-topics\.sh --create"):
        ensure_topic(wanted)
    broker.grant(USER, ResourceType.TOPIC, wanted.topic, AclOperation.DESCRIBE)
    with pytest.raises(NoRight, match=f"--topic {wanted.topic} --partitions 2 .*or grant CREATE"):
        ensure_topic(wanted)


def test_without_the_right_to_read_settings_nothing_is_wrong(broker: SecureKafka, scram: dict[str, str]) -> None:
    topic = created(broker).topic
    broker.grant(USER, ResourceType.TOPIC, topic, AclOperation.DESCRIBE)
    assert topic_config.problems(settings(broker.sasl, scram, topic=topic), BATCH_BYTES_MAX) is None
    broker.grant(USER, ResourceType.TOPIC, topic, AclOperation.DESCRIBE_CONFIGS)
    assert topic_config.problems(settings(broker.sasl, scram, topic=topic), BATCH_BYTES_MAX) == []


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"cleanup.policy": "compact"}, "cleanup.policy=compact .*--add-config cleanup.policy=delete"),
        ({"max.message.bytes": "1048588"}, "max.message.bytes=1048588 .*BULKGRPC_BATCH_BYTES_MAX to 983436 or less"),
    ],
)
async def test_a_server_refuses_a_topic_that_loses_or_refuses_batches(
    server_settings: ServerSettings, config: dict[str, str], reason: str
) -> None:
    create_topic(server_settings.kafka, server_settings.topic, config)
    with pytest.raises(CannotServe, match=reason) as refused:
        async with serving(server_settings):
            pass
    assert refused.value.status == WRONG_SETTINGS


async def test_a_job_is_written_with_the_least_rights(
    broker: SecureKafka, scram: dict[str, str], server_database: str, addresses: Addresses, tmp_path: Path
) -> None:
    operated = created(broker)
    topic, dead_letters, group = operated.topic, f"{operated.topic}.dead", f"{operated.topic}.group"
    create_topic(broker.plain, dead_letters, {"max.message.bytes": str(2 * KAFKA_MESSAGE_BYTES_MAX)})
    both = (AclOperation.READ, AclOperation.WRITE)
    broker.grant(USER, ResourceType.TOPIC, topic, *both)
    broker.grant(USER, ResourceType.TOPIC, dead_letters, *both)
    broker.grant(USER, ResourceType.GROUP, group, AclOperation.READ)
    secrets = tmp_path / "client.properties"
    secrets.write_text("".join(f"{name}={value}\n" for name, value in scram.items()))
    environment = {
        "BULKGRPC_KAFKA": broker.sasl,
        "BULKGRPC_KAFKA_CONFIG": str(secrets),
        "BULKGRPC_POSTGRES": server_database,
        "BULKGRPC_REDIS": addresses.redis,
        "BULKGRPC_TOPIC": topic,
        "BULKGRPC_DEAD_LETTER_TOPIC": dead_letters,
        "BULKGRPC_GROUP": group,
    }
    with service(environment, tmp_path, workers=1) as running:
        async with AsyncBulkClient(running.address) as client:
            await client.register_dataset(
                compile_proto(proto_root() / "examples" / "v1" / "sensors.proto"), "examples.v1.SensorReading"
            )
            job = await client.submit("sensor_readings", [Batch(reading_batch(0, 500), 500)])
            ended = await job.wait()
        assert (ended.state, ended.counts.written) == (JobState.SUCCEEDED, 500)
        assert PASSWORD not in running.server.log.read_text() + running.workers[0].log.read_text()


async def test_a_server_process_says_what_is_wrong_before_it_gives_up(
    broker: SecureKafka, scram: dict[str, str], server_database: str, addresses: Addresses
) -> None:
    environment = {
        **os.environ,
        "BULKGRPC_KAFKA": broker.sasl,
        **{variable_of(name): value for name, value in {**scram, "sasl.password": "wrong"}.items()},
        "BULKGRPC_POSTGRES": server_database,
        "BULKGRPC_REDIS": addresses.redis,
    }
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bulkgrpc.server.process", "--listen", "127.0.0.1:0"),
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    assert server.stderr is not None
    try:
        async with asyncio.timeout(20):
            while b"authentication failed" not in (line := await server.stderr.readline()):
                assert line, "it ended without a word"
        assert b"kafka_unavailable_at_start" in line
    finally:
        server.kill()
        await server.wait()


def test_dead_letters_need_no_right_to_create(broker: SecureKafka, scram: dict[str, str]) -> None:
    name = f"dead-{uuid.uuid4().hex[:8]}"
    create_topic(broker.plain, name, {})
    broker.grant(USER, ResourceType.TOPIC, name, AclOperation.READ, AclOperation.WRITE)
    assert DeadLetters(settings(broker.sasl, scram, dead_letter_topic=name)).unsettled() == []


def create_topic(kafka: str, name: str, config: dict[str, str]) -> None:
    admin = AdminClient({"bootstrap.servers": kafka, "log_level": 0})
    admin.create_topics([NewTopic(name, 1, 1, config=config)])[name].result(10)
