"""The settings of a client: TLS, deadlines, retries, buffers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from bulkgrpc.limits import CLIENT_MESSAGE_BYTES_MAX

DEFAULT_TARGET = "127.0.0.1:50051"
Token = str | Callable[[], str | Awaitable[str]]
"""A JSON Web Token, or a function, plain or asynchronous, that returns one. A plain one is called on a thread."""


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS settings. Every path is a PEM file."""

    ca: Path | None = None
    """Certificates of the certificate authorities to trust. Default: those of gRPC."""
    certificate: Path | None = None
    """The client's own certificate chain, for mTLS. Default: none."""
    key: Path | None = None
    """The key of `certificate`. Default: none."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Return the channel's credentials. Raises OSError if a file cannot be read."""
        ca, key, certificate = (path and path.read_bytes() for path in (self.ca, self.key, self.certificate))
        return grpc.ssl_channel_credentials(ca or None, key or None, certificate or None)


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """Deadlines, retries and buffers. The defaults suit a service in the same data center."""

    call_deadline_s: float = 30.0
    """Seconds for a unary call, including retries and pauses. Default: 30."""
    connect_deadline_s: float = 5.0
    """Seconds to retry while no server has ever answered this client. Default: 5."""
    open_deadline_s: float = 30.0
    """Seconds from opening a stream to the server's answer. Default: 30."""
    acknowledge_deadline_s: float = 60.0
    """Seconds from sending a batch or the seal to its acknowledgement; then the stream is broken. Default: 60."""
    retry_deadline_s: float = 300.0
    """Seconds without progress after which a submission gives up. Default: 300."""
    retry_base_s: float = 0.1
    """Longest pause before the second attempt, in seconds. Doubles with every attempt. Default: 0.1."""
    retry_cap_s: float = 5.0
    """Longest pause before any attempt, in seconds, in addition to what the server asks for. Default: 5."""
    buffer_bytes_max: int = 16 * 1024 * 1024
    """Bytes of batches buffered until they are acknowledged. While full, the source is not read. Default: 16 MiB."""
    buffer_batches_max: int = 1024
    """Batches buffered until they are acknowledged. Default: 1,024."""
    batch_records: int = 1000
    """Messages packed into one batch. Default: 1,000."""
    batch_bytes: int = 512 * 1024
    """Maximum bytes of a batch of messages; a single larger message is one batch. Default: 512 KiB."""

    def __post_init__(self) -> None:
        """Raise ValueError if a field is not above 0; the message names it."""
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")


def channel_options() -> list[tuple[str, int]]:
    """Return the options of every channel: no compression, fast reconnects, dead peers detected within 40 s."""
    return [
        ("grpc.default_compression_algorithm", 0),
        ("grpc.max_send_message_length", CLIENT_MESSAGE_BYTES_MAX),
        ("grpc.max_receive_message_length", CLIENT_MESSAGE_BYTES_MAX),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # As often as that also while nothing is sent: what closes idle connections then sees none.
        ("grpc.http2.max_pings_without_data", 0),
        # gRPC's own pause grows to two minutes; until it ends, calls fail without an attempt to connect.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # Two clients of one process must not share a connection: if one breaks, the other must continue.
        ("grpc.use_local_subchannel_pool", 1),
    ]
