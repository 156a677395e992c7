"""What a client may be told: whom to trust, how patient to be, how much to hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

DEFAULT_TARGET = "127.0.0.1:50051"

_MESSAGE_BYTES_MAX = 16 * 1024 * 1024
"""Above the largest batch that a server may be set to take, and above any dataset's descriptors."""


@dataclass(frozen=True, slots=True)
class Tls:
    """How to speak TLS. Every path is of a PEM file."""

    ca: Path | None = None
    """Certificates of the authorities to trust. Default: those that gRPC brings."""
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
    """How patient a client is and how much it holds. The defaults suit a service in the same data centre."""

    call_deadline_s: float = 30.0
    """Seconds for a unary call, tries and pauses included. Default: 30."""
    connect_deadline_s: float = 5.0
    """Seconds to go on trying while no server answered this client even once. Default: 5."""
    open_deadline_s: float = 30.0
    """Seconds from opening a stream to the server's answer. Default: 30."""
    acknowledge_deadline_s: float = 60.0
    """Seconds that a sent batch, or the seal, may wait for its answer before the stream counts as lost. Default: 60."""
    retry_deadline_s: float = 300.0
    """Seconds without any progress after which a submission gives up. Default: 300."""
    retry_base_s: float = 0.1
    """Longest pause before the second try; doubles with every try. Default: 0.1."""
    retry_cap_s: float = 5.0
    """Longest pause before any try, what the server asked for not counted. Default: 5."""
    buffer_bytes_max: int = 16 * 1024 * 1024
    """Bytes of batches held until they are acknowledged; when full, nothing more is drawn. Default: 16 MiB."""
    buffer_batches_max: int = 1024
    """Batches held until they are acknowledged. Default: 1,024."""
    batch_records: int = 1000
    """Messages packed into one batch. Default: 1,000."""
    batch_bytes: int = 512 * 1024
    """Bytes after which a batch is full, whatever its number of messages. Default: 512 KiB."""

    def __post_init__(self) -> None:
        """Raise ValueError naming the field that is not above 0."""
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")


def channel_options() -> list[tuple[str, int]]:
    """Return the options of every channel: no compression, quick reconnects, dead peers noticed within 40 s."""
    return [
        ("grpc.default_compression_algorithm", 0),
        ("grpc.max_send_message_length", _MESSAGE_BYTES_MAX),
        ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # gRPC's own pause grows to two minutes, in which every try fails without being one.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # Two clients of one process must not share a connection: one's lost server is not the other's.
        ("grpc.use_local_subchannel_pool", 1),
    ]
