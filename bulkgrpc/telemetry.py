"""Exports the metrics of a process: at an HTTP endpoint for Prometheus, and by OTLP if `OTEL_*` names a collector.

The endpoint also answers `/livez` and `/readyz`. None of it depends on Kafka, PostgreSQL or Redis.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from typing import Any, ClassVar

import structlog
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from bulkgrpc.metrics import Process, start_counters

_log = structlog.get_logger()

METRICS, LIVE, READY = "/metrics", "/livez", "/readyz"
REQUEST_TIMEOUT_S = 5.0
SHUTDOWN_TIMEOUT_S = 2.0
"""A collector that does not answer does not delay the end of a process for longer."""
PORTS_TRIED = 100
"""From the port of the setting on: the processes of a machine take one each."""
_OTLP = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

Probe = Callable[[], str]
"""Returns why a process is not live or not ready; empty if it is."""


class WrongTelemetry(ValueError):
    """A setting cannot be used. str() names its variable."""


@dataclass(frozen=True, slots=True)
class Probes:
    """What a process says of itself. live: a failing one is to be restarted. ready: it takes work."""

    live: Probe
    ready: Probe


class Telemetry:
    """The meter provider of a process, and its endpoint. Start once, stop once."""

    def __init__(self, process: Process, environment: Mapping[str, str] = os.environ) -> None:
        """Have the process's metrics recorded. Raises WrongTelemetry."""
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # its memory, CPU time and open files
        readers: list[MetricReader] = [
            PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False, registry=self._registry)
        ]
        if any(environment.get(name) for name in _OTLP):
            readers.append(PeriodicExportingMetricReader(_otlp_exporter(environment)))
        self._provider = MeterProvider(readers, _resource(f"bulkgrpc-{process}", environment), shutdown_on_exit=False)
        metrics.set_meter_provider(self._provider)
        start_counters(process)
        self._server: ThreadingHTTPServer | None = None

    def serve(self, listen: str, probes: Probes) -> None:
        """Serve the endpoint in a thread, at the first port from that of `listen` on that is free; nothing if empty.

        Raises WrongTelemetry.
        """
        if not listen:
            return
        host, _, port = listen.rpartition(":")
        if not port.isdigit() or int(port) > 65_535 or not host:
            raise WrongTelemetry(f"BULKGRPC_METRICS_LISTEN: not host:port (got {listen!r})")
        self._server = self._bind(host.strip("[]"), int(port), probes)
        threading.Thread(target=self._server.serve_forever, name="telemetry", daemon=True).start()
        _log.info("telemetry_served", address=f"{host}:{self._server.server_address[1]}")

    def _bind(self, host: str, port: int, probes: Probes) -> ThreadingHTTPServer:
        ports = range(port, min(port + PORTS_TRIED, 65_536)) if port else [0]
        registry = self._registry

        class Handler(_Handler):
            answers: ClassVar = {
                LIVE: lambda _: _probed(probes.live),
                READY: lambda _: _probed(probes.ready),
                METRICS: lambda accept: _encoded(registry, accept),
            }

        class Server(ThreadingHTTPServer):
            address_family = AF_INET6 if ":" in host else AF_INET
            daemon_threads = True

        failure: OSError | None = None
        for tried in ports:
            try:
                return Server((host, tried), Handler)
            except OSError as error:
                failure = error
        raise WrongTelemetry(f"BULKGRPC_METRICS_LISTEN: cannot listen on {host}:{port}: {failure}")

    def stop(self) -> None:
        """Stop the endpoint, and export what was measured last."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._provider.shutdown(int(SHUTDOWN_TIMEOUT_S * 1000))


_Answer = tuple[HTTPStatus, str, bytes]


class _Handler(BaseHTTPRequestHandler):
    """Answers GET. answers: by path, from the header Accept."""

    answers: ClassVar[Mapping[str, Callable[[str], _Answer]]] = {}
    timeout = REQUEST_TIMEOUT_S
    server_version, sys_version = "bulkgrpc", ""

    def do_GET(self) -> None:
        answer = self.answers.get(self.path.partition("?")[0])
        if answer is None:
            known = ", ".join(self.answers)
            status, kind, body = HTTPStatus.NOT_FOUND, "text/plain", f"there are {known}\n".encode()
        else:
            status, kind, body = answer(self.headers.get("Accept", ""))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 — as in http.server
        """Log nothing: a probe comes every few seconds."""


def _probed(probe: Probe) -> _Answer:
    reason = probe()
    status = HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK
    return status, "text/plain; charset=utf-8", f"{reason or 'ok'}\n".encode()


def _encoded(registry: CollectorRegistry, accept: str) -> _Answer:
    encode, kind = choose_encoder(accept)
    return HTTPStatus.OK, kind, encode(registry)


def _resource(service: str, environment: Mapping[str, str]) -> Resource:
    named = "OTEL_SERVICE_NAME" in environment or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return Resource.create({} if named else {"service.name": service})


def _otlp_exporter(environment: Mapping[str, str]) -> Any:
    for name in _PROTOCOLS:
        if environment.get(name, "http/protobuf") != "http/protobuf":
            raise WrongTelemetry(f"{name}: only http/protobuf can be had (got {environment[name]!r})")
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415 — slow

    return OTLPMetricExporter()
