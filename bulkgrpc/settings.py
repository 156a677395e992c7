"""Settings from the environment, one class per process. An invalid one stops the process when it starts."""

from __future__ import annotations

import os
import sys
from typing import Literal, NoReturn, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from bulkgrpc import limits
from bulkgrpc.kafka_properties import WrongKafkaProperty, kafka_properties

PREFIX = "BULKGRPC_"
CHUNK_COMMIT_MS = 500
"""Default of `chunk_commit_ms`."""


class StackSettings(BaseSettings):
    """The addresses of the stores. The defaults are the usual ports of `bulkgrpc up`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True)

    kafka: str = Field("127.0.0.1:9092", description="Kafka bootstrap servers, host:port separated by commas")
    kafka_config: str = Field("", description="path of a file with properties of librdkafka, one NAME=VALUE a line")
    kafka_token_command: str = Field(
        "", description="with sasl.mechanism=OAUTHBEARER: command that prints a token, each time one is needed"
    )
    kafka_properties: dict[str, str] = Field(
        default_factory=dict, repr=False, description="properties of librdkafka; by `load` from file and environment"
    )
    postgres: str = Field(
        "postgresql://bulkgrpc@127.0.0.1:5432/bulkgrpc", description="PostgreSQL connection string of libpq"
    )
    redis: str = Field("redis://127.0.0.1:6379/0", description="Redis or Valkey URL")
    topic: str = Field("bulkgrpc.records", description="Kafka topic of the record batches")
    dead_letter_topic: str = Field("bulkgrpc.dead-letters", description="Kafka topic of messages that belong to no job")
    partitions: int = Field(4, ge=1, le=10_000, description="partitions of the records topic when it is created")
    replication: int = Field(1, ge=1, le=10, description="replicas of each topic when it is created")


class ProcessSettings(StackSettings):
    """What servers and workers have in common."""

    metrics_listen: str = Field(
        "127.0.0.1:9464",
        description="address of /metrics, /livez and /readyz, host:port; the processes of a machine take the ports "
        "from it on; empty for none",
    )


class ServerSettings(ProcessSettings):
    """The ingest server's settings."""

    listen: str = Field("127.0.0.1:50051", description="address to serve gRPC on, host:port")
    processes: int = Field(1, ge=1, le=64, description="server processes that share the address (SO_REUSEPORT)")
    auth: Literal["none", "jwt"] = Field(
        "none", description="none: trust the tenant in the metadata; jwt: need a token"
    )
    auth_none_anywhere: bool = Field(
        False, description="with auth=none: accept it although the address is not only this machine's"
    )
    jwks: str = Field("", description="with auth=jwt: path or https URL of the JSON Web Key Set")
    jwt_issuer: str = Field("", description="with auth=jwt: required issuer claim")
    jwt_audience: str = Field("bulkgrpc", description="with auth=jwt: required audience claim")
    tls_certificate: str = Field("", description="path of the server's PEM certificate chain; empty for no TLS")
    tls_key: str = Field("", description="path of the certificate's PEM key")
    tls_client_ca: str = Field(
        "", description="path of the PEM certificates that sign clients; then a client without a certificate is refused"
    )
    batch_bytes_max: int = Field(limits.BATCH_BYTES_MAX, ge=1024, description="maximum bytes of a serialized batch")
    batch_records_max: int = Field(limits.BATCH_RECORDS_MAX, ge=1, description="maximum records in a batch")
    streams_max: int = Field(
        limits.STREAMS_MAX, ge=1, le=10_000, description="maximum concurrent streams of one process"
    )
    in_flight_bytes_max: int = Field(
        16 * 1024 * 1024,
        ge=1024 * 1024,
        description="bytes in flight to Kafka above which the server stops reading from clients",
    )
    parked_bytes_max: int = Field(
        limits.PARKED_BYTES_MAX,
        ge=0,
        description="bytes of parked messages of a blocked dataset above which the server refuses its new jobs; at "
        "twice as much it refuses all batches of the dataset",
    )
    drain_s: float = Field(20.0, ge=0, description="seconds that open streams may take after SIGTERM")
    when_redis_is_down: Literal["accept", "refuse"] = Field(
        "accept", description="new streams while Redis is unavailable"
    )


class WorkerSettings(ProcessSettings):
    """The worker's settings."""

    group: str = Field("bulkgrpc-workers", description="Kafka consumer group")
    group_protocol: Literal["consumer", "classic"] = Field(
        "consumer", description="consumer: KIP-848, Kafka 4 and later"
    )
    chunk_rows_min: int = Field(2_000, ge=1, le=1_000_000, description="minimum rows at which a chunk is full")
    chunk_rows_max: int = Field(50_000, ge=1, le=1_000_000, description="maximum rows in one transaction")
    chunk_commit_ms: int = Field(
        CHUNK_COMMIT_MS,
        ge=1,
        le=10_000,
        description="milliseconds that a transaction may take; the rows of a chunk are tuned to it",
    )
    chunk_bytes_max: int = Field(
        8 * 1024 * 1024, ge=1024 * 1024, description="maximum payload bytes in one transaction"
    )
    chunk_linger_ms: int = Field(
        0, ge=0, le=60_000, description="milliseconds to wait for more rows while Kafka has none"
    )
    drain_s: float = Field(20.0, ge=0, description="seconds that the pending chunks may take after SIGTERM")
    abandoned_after_s: float = Field(
        86_400.0, gt=0, description="seconds without a batch after which an open job ends as EXPIRED"
    )
    retention_days: int = Field(7, ge=2, description="days that job rows, ledger rows and rejections are kept")
    maintenance_interval_s: float = Field(
        10.0, gt=0, description="seconds between two maintenance rounds of the leader"
    )


S = TypeVar("S", bound=StackSettings)


def load(cls: type[S], **overrides: object) -> S:
    """Read the settings of a process from the environment. `overrides` that are not None take precedence.

    Exits with status 2 and one line per invalid setting, which names its variable.
    """
    try:
        given = {name: value for name, value in overrides.items() if value is not None}
        given.setdefault("kafka_properties", kafka_properties(os.environ, StackSettings.model_fields))
        settings = cls(**given)  # type: ignore[arg-type]
        limits.check_limits(**{name: value for name, value in settings if isinstance(value, int | float)})
    except ValidationError as error:
        for problem in error.errors():
            name = PREFIX + "_".join(str(part) for part in problem["loc"]).upper()
            sys.stderr.write(f"error: {name}: {problem['msg']} (got {problem['input']!r})\n")
        _stop()
    except WrongKafkaProperty as error:
        sys.stderr.write(f"error: {error}\n")
        _stop()
    except limits.LimitError as error:
        for broken in error.broken:
            sys.stderr.write(
                f"error: {f'{PREFIX}{broken.setting.upper()}: '.removesuffix(f'{PREFIX}: ')}{broken.message}\n"
            )
        _stop()
    return settings


def _stop() -> NoReturn:
    raise SystemExit(2)
