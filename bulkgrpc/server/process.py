"""The command `bulkgrpc-server`: settings, checks, one process or several."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Annotated, NoReturn

import structlog
import typer
import uvloop
from google.protobuf.internal import api_implementation

from bulkgrpc import allocator, logs
from bulkgrpc.server.cannot_serve import CannotServe
from bulkgrpc.settings import PREFIX, ServerSettings, load

_log = structlog.get_logger()

ARENAS = 1
"""One thread handles the batches."""
app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command()
def serve(
    listen: Annotated[
        str | None, typer.Option(help="Address to serve gRPC on, host:port. Port 0 selects a free port.")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="Number of server processes that share the address.")] = None,
    parent: Annotated[int, typer.Option(hidden=True)] = 0,
) -> None:
    """Run an ingest server. It accepts streams of record batches over gRPC and stores the batches in Kafka.

    Environment variables configure the server. An option overrides its variable.

    - BULKGRPC_KAFKA, BULKGRPC_POSTGRES and BULKGRPC_REDIS are the addresses of the stores.
    - BULKGRPC_LISTEN and BULKGRPC_PROCESSES are the variables of the options.
    - BULKGRPC_AUTH=jwt, with BULKGRPC_JWKS, requires a token of every caller.
    - BULKGRPC_TLS_CERTIFICATE and BULKGRPC_TLS_KEY enable TLS.

    When the server is ready, it prints one line on stdout: `serving gRPC on ADDRESS`. Logs go to stderr. On SIGTERM the
    server drains: it refuses new streams, and open streams have BULKGRPC_DRAIN_S seconds to end.

    For example:

        bulkgrpc server --listen 127.0.0.1:50051

    docs/operations.md lists the settings.
    """
    settings = load(ServerSettings, listen=listen, processes=processes)
    allocator.keep_flat(ARENAS)
    logs.set_up()
    if api_implementation.Type() != "upb":
        # The pure-Python parser is a hundred times slower and has had vulnerabilities of its own.
        _fail(f"protobuf's implementation is {api_implementation.Type()}, not upb: install protobuf from its wheel")
    raise SystemExit(_run_one(settings, parent) if parent or settings.processes == 1 else _run_many(settings))


def main() -> None:
    """Run the command."""
    app()


def _run_one(settings: ServerSettings, parent: int) -> int:
    # Before gRPC is loaded, which reads it once: no handshake of TLS 1.2 with an ECDSA key.
    os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", "ECDHE-RSA-AES128-GCM-SHA256")
    from bulkgrpc.server import serving  # noqa: PLC0415 — loads librdkafka, which a supervising parent must not
    from bulkgrpc.server.supervisor import end_with  # noqa: PLC0415

    if parent:
        end_with(parent)
    try:
        return uvloop.run(serving.serve(settings, _announce, shared_port=parent != 0))
    except CannotServe as error:
        _fail(str(error), error.status)


def _run_many(settings: ServerSettings) -> int:
    from bulkgrpc.server.supervisor import Supervisor, child_command, reserve  # noqa: PLC0415

    async def run(address: str) -> int:
        environment = {**os.environ, f"{PREFIX}PROCESSES": "1"}
        supervisor = Supervisor(
            child_command(address), environment, settings.processes, settings.drain_s, lambda: _announce(address)
        )
        return await supervisor.run()

    try:
        reserved, address = reserve(settings.listen)
    except (OSError, ValueError) as error:
        _fail(f"cannot listen on {settings.listen}: {error}; choose another address with --listen")
    with reserved:
        return asyncio.run(run(address))


def _announce(address: str) -> None:
    sys.stdout.write(f"serving gRPC on {address}\n")
    sys.stdout.flush()


def _fail(message: str, status: int = 1) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(status)


if __name__ == "__main__":
    main()
