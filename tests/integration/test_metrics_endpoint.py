"""The metrics of a running service: what Prometheus scrapes, what a collector gets, and `bulkgrpc lag`."""

from __future__ import annotations

import json
import re
import signal
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from typer.testing import CliRunner

from bulkgrpc.cli.app import app
from bulkgrpc.client import Batch, BulkClient
from bulkgrpc.datasets.sources import compile_proto, proto_root
from tests.integration.service_values import Parts
from tests.support import examples
from tests.support.processes import Process, Service, service
from tests.support.waiting import wait_for

pytest_plugins = ["tests.integration.service_parts"]

BATCHES, ROWS = 3, 100
WITHIN_S = 30.0


class Collector:
    """A collector of OTLP over HTTP: the names of the metrics that each service sent."""

    def __init__(self) -> None:
        self.names: dict[str, set[str]] = {}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(ExportMetricsServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 — as in http.server
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, request: ExportMetricsServiceRequest) -> None:
        for one in request.resource_metrics:
            named = {pair.key: pair.value.string_value for pair in one.resource.attributes}
            found = self.names.setdefault(named["service.name"], set())
            found |= {metric.name for scope in one.scope_metrics for metric in scope.metrics}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    one = Collector()
    yield one
    one.close()


@pytest.fixture
def environment(parts: Parts, collector: Collector) -> dict[str, str]:
    """A topic and a group of the test's own, and a collector."""
    name = f"metrics-{uuid.uuid4().hex[:8]}"
    return {
        **parts.environment,
        "BULKGRPC_TOPIC": name,
        "BULKGRPC_GROUP": name,
        "BULKGRPC_PARTITIONS": "2",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "OTEL_METRIC_EXPORT_INTERVAL": "200",
    }


@pytest.fixture
def served(environment: dict[str, str], tmp_path: Path) -> Iterator[Service]:
    """A server, and no worker yet."""
    with service(environment, tmp_path, workers=0) as processes:
        with BulkClient(processes.address) as client:
            descriptors = compile_proto(proto_root() / "examples" / "v1" / "sensors.proto")
            client.register_dataset(descriptors, "examples.v1.SensorReading")
        yield processes


@pytest.fixture
def worker(environment: dict[str, str], tmp_path: Path) -> Iterator[Process]:
    process = Process("workers.process", (), environment, tmp_path / "worker.log")
    yield process
    process.stop()


def endpoint(process: Process) -> str:
    lines = [json.loads(line) for line in process.log.read_text().splitlines() if "telemetry_served" in line]
    return str(lines[-1]["address"])


def get(process: Process, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{endpoint(process)}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def values(process: Process, name: str) -> dict[str, float]:
    """Return the values of a metric by their labels."""
    found = re.findall(rf"^{name}(\{{.*\}})? (\S+)$", get(process, "/metrics")[1], re.MULTILINE)
    return {labels: float(value) for labels, value in found}


def lag(environment: dict[str, str]) -> dict[str, object]:
    result = CliRunner().invoke(app, ["lag", "--json"], env=environment)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def submit(address: str) -> None:
    batches = [Batch(examples.reading_batch(number * ROWS, ROWS), ROWS) for number in range(BATCHES)]
    with BulkClient(address, tenant="metrics") as client:
        client.submit(examples.readings().name, batches)


def test_depth_age_and_latency_from_acknowledged_to_applied(
    served: Service, worker: Process, environment: dict[str, str], collector: Collector
) -> None:
    assert get(served.server, "/readyz") == (200, "ok\n")
    submit(served.address)
    # Three batches and a seal. No worker runs.
    assert lag(environment)["messages"] == BATCHES + 1
    assert wait_for(lambda: sum(values(served.server, "bulkgrpc_queue_depth").values()) == BATCHES + 1, WITHIN_S)
    oldest = [max(values(served.server, "bulkgrpc_message_age_seconds").values())]
    assert wait_for(lambda: max(values(served.server, "bulkgrpc_message_age_seconds").values()) > oldest[0], WITHIN_S)
    assert set(values(served.server, "bulkgrpc_queue_depth")) == {'{partition="0"}', '{partition="1"}'}
    assert values(served.server, "bulkgrpc_backlog_work_seconds")[""] > 0

    worker.start()
    assert wait_for(lambda: lag(environment)["messages"] == 0, WITHIN_S)
    assert wait_for(lambda: sum(values(served.server, "bulkgrpc_queue_depth").values()) == 0, WITHIN_S)
    assert max(values(served.server, "bulkgrpc_message_age_seconds").values()) == 0
    assert values(served.server, "bulkgrpc_backlog_work_seconds")[""] == 0
    assert get(worker, "/readyz") == (200, "ok\n")
    assert values(worker, "bulkgrpc_processing_latency_seconds_count")[""] == BATCHES
    assert values(worker, "bulkgrpc_records_written_total")[""] == BATCHES * ROWS

    assert wait_for(lambda: "bulkgrpc.queue.depth" in collector.names.get("bulkgrpc-server", ()), WITHIN_S)
    assert wait_for(lambda: "bulkgrpc.processing.latency" in collector.names.get("bulkgrpc-worker", ()), WITHIN_S)
    assert worker.kill(signal.SIGTERM) == 0


def test_a_collector_that_is_away_delays_no_end(environment: dict[str, str], worker: Process, served: Service) -> None:
    environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:1"
    worker.start()
    assert worker.kill(signal.SIGTERM) == 0


def test_lag_says_what_does_not_answer(environment: dict[str, str]) -> None:
    environment["BULKGRPC_KAFKA"] = "127.0.0.1:1"
    result = CliRunner().invoke(app, ["lag"], env=environment)
    assert result.exit_code == 1
    assert "Kafka" in result.stderr
    assert result.stderr.count("\n") == 1


def test_lag_is_a_table_of_80_columns(served: Service, environment: dict[str, str]) -> None:
    submit(served.address)
    result = CliRunner().invoke(app, ["lag"], env={**environment, "COLUMNS": "80"})
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert re.search(r"total\s+│\s+│\s+4 │\s+\d+ s", result.stdout), result.stdout
