"""HTTP/2 frames made by hand, for streams that no gRPC client would send."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1
STREAM_ID = 1


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream_id) + payload


def grpc_message(body: bytes) -> bytes:
    """Return the body with gRPC's prefix: not compressed, its length."""
    return struct.pack(">BI", 0, len(body)) + body


def _literal(name: str, value: str) -> bytes:
    """Return an HPACK header field, literal and never indexed, without Huffman coding."""
    return b"\x10" + b"".join(bytes([len(text)]) + text.encode() for text in (name, value))


class RawCall:
    """One gRPC call on a connection of its own, written frame by frame."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def data(self, payload: bytes, *, end: bool = False) -> None:
        """Send a DATA frame; end: with END_STREAM, so that the call is half-closed."""
        self._writer.write(frame(DATA, END_STREAM if end else 0, STREAM_ID, payload))
        await self._writer.drain()

    def abort(self) -> None:
        """Break the connection."""
        self._writer.transport.abort()

    async def until_ended(self) -> bytes:
        """Read until the server ends the call; return the payloads of its DATA frames."""
        found = b""
        while True:
            head = await self._reader.readexactly(9)
            length, kind, flags, stream_id = int.from_bytes(head[:3]), head[3], head[4], int.from_bytes(head[5:])
            payload = await self._reader.readexactly(length)
            found += payload if kind == DATA else b""
            if stream_id == STREAM_ID and (kind == RST_STREAM or (flags & END_STREAM and kind in (DATA, HEADERS))):
                return found


@asynccontextmanager
async def raw_call(address: str, path: str) -> AsyncIterator[RawCall]:
    """Open a connection and start a call of the method `path`."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": address,
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(_literal(name, value) for name, value in fields.items())
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0))
    writer.write(frame(HEADERS, END_HEADERS, STREAM_ID, block))
    await writer.drain()
    try:
        yield RawCall(reader, writer)
    finally:
        writer.transport.abort()
