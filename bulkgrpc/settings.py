"""Settings from the environment, one class a process. A wrong one stops the process at start, naming its variable."""

from __future__ import annotations

import sys
from typing import Literal, NoReturn, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from bulkgrpc import limits

PREFIX = "BULKGRPC_"


class StackSettings(BaseSettings):
    """Where the three stores are; the defaults are those of `bulkgrpc up`'s usual ports."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True)

    kafka: str = Field("127.0.0.1:9092", description="Kafka bootstrap servers, host:port with commas between")
    postgres: str = Field(
        "postgresql://bulkgrpc@127.0.0.1:5432/bulkgrpc", description="PostgreSQL connection string of libpq"
    )
    redis: str = Field("redis://127.0.0.1:6379/0", description="Redis or Valkey URL")
    topic: str = Field("bulkgrpc.records", description="Kafka topic of the record batches")
    dead_letter_topic: str = Field("bulkgrpc.dead-letters", description="Kafka topic of messages that nobody can place")
    partitions: int = Field(4, ge=1, le=10_000, description="partitions of the topic, if it has to be created")
    replication: int = Field(1, ge=1, le=10, description="replicas of the topic, if it has to be created")


class ServerSettings(StackSettings):
    """The ingest server's settings."""

    listen: str = Field("127.0.0.1:50051", description="address to serve gRPC on, host:port")
    processes: int = Field(1, ge=1, le=64, description="server processes that share the address (SO_REUSEPORT)")
    auth: Literal["none", "jwt"] = Field("none", description="none: trust the tenant in the metadata; jwt: ask a token")
    jwks: str = Field("", description="with auth=jwt: path or https URL of the JSON Web Key Set")
    jwt_issuer: str = Field("", description="with auth=jwt: required issuer claim")
    jwt_audience: str = Field("bulkgrpc", description="with auth=jwt: required audience claim")
    tls_certificate: str = Field("", description="path of the server's PEM certificate chain; empty: no TLS")
    tls_key: str = Field("", description="path of the PEM key of the certificate")
    batch_bytes_max: int = Field(limits.BATCH_BYTES_MAX, ge=1024, description="largest serialized batch, bytes")
    batch_records_max: int = Field(limits.BATCH_RECORDS_MAX, ge=1, description="most records in a batch")
    streams_max: int = Field(limits.STREAMS_MAX, ge=1, le=10_000, description="streams served at once by one process")
    in_flight_bytes_max: int = Field(
        16 * 1024 * 1024, ge=1024 * 1024, description="bytes on their way to Kafka before reading from clients stops"
    )
    drain_s: float = Field(20.0, ge=0, description="seconds that SIGTERM gives to open streams")
    when_redis_is_down: Literal["accept", "refuse"] = Field("accept", description="what happens to new streams then")


class WorkerSettings(StackSettings):
    """The worker's settings."""

    group: str = Field("bulkgrpc-workers", description="Kafka consumer group")
    group_protocol: Literal["consumer", "classic"] = Field("consumer", description="consumer: KIP-848, Kafka 4 and up")
    chunk_rows_min: int = Field(2_000, ge=1, le=1_000_000, description="rows below which a full chunk is never made")
    chunk_rows_max: int = Field(50_000, ge=1, le=1_000_000, description="most rows in one transaction")
    chunk_commit_ms: int = Field(
        500, ge=1, le=10_000, description="milliseconds that a transaction may take; its rows are measured out for that"
    )
    chunk_bytes_max: int = Field(8 * 1024 * 1024, ge=1024 * 1024, description="most payload bytes in one transaction")
    chunk_linger_ms: int = Field(
        0, ge=0, le=60_000, description="milliseconds to wait for more rows when Kafka has none"
    )
    drain_s: float = Field(20.0, ge=0, description="seconds that SIGTERM gives to the chunk in hand")
    abandoned_after_s: float = Field(
        86_400.0, gt=0, description="seconds without a batch after which an open job is ended as EXPIRED"
    )
    retention_days: int = Field(7, ge=2, description="days for which job rows, ledgers and rejections are kept")
    maintenance_interval_s: float = Field(
        10.0, gt=0, description="seconds between two maintenance rounds of the leader"
    )


S = TypeVar("S", bound=BaseSettings)


def load(cls: type[S], **overrides: object) -> S:
    """Read a process' settings from the environment; `overrides` (not None) win over it.

    Exits with status 2 and one line per wrong setting that names its variable.
    """
    try:
        settings = cls(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]
        limits.check_limits(
            getattr(settings, "batch_bytes_max", limits.BATCH_BYTES_MAX), getattr(settings, "chunk_bytes_max", None)
        )
    except ValidationError as error:
        for problem in error.errors():
            name = PREFIX + "_".join(str(part) for part in problem["loc"]).upper()
            sys.stderr.write(f"error: {name}: {problem['msg']} (got {problem['input']!r})\n")
        _stop()
    except limits.LimitError as error:
        sys.stderr.write(f"error: settings do not fit each other: {error}\n")
        _stop()
    return settings


def _stop() -> NoReturn:
    raise SystemExit(2)
