"""The endpoint of a process: metrics in Prometheus's format, live, ready."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing

import pytest
from structlog.testing import capture_logs

from bulkgrpc import metrics
from bulkgrpc.server.health import Health as ServerHealth
from bulkgrpc.telemetry import Probes, Telemetry, WrongTelemetry
from workers.health import Health as WorkerHealth

TIMEOUT_S = 5.0


class State:
    reason = ""


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture(scope="module")
def telemetry() -> Iterator[Telemetry]:
    """One for the module: a process has one meter provider."""
    one = Telemetry(metrics.Process.WORKER, {})
    yield one
    one.stop()


def served(telemetry: Telemetry, listen: str, state: State) -> str:
    with capture_logs() as lines:
        telemetry.serve(listen, Probes(lambda: state.reason, lambda: state.reason))
    return str(next(line["address"] for line in lines if line["event"] == "telemetry_served"))


def get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=TIMEOUT_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_probes_answer_200_or_503_with_the_reason(telemetry: Telemetry, state: State) -> None:
    address = served(telemetry, "127.0.0.1:0", state)
    assert get(address, "/livez") == (200, "ok\n")
    state.reason = "the worker drains"
    assert get(address, "/readyz?verbose") == (503, "the worker drains\n")
    assert get(address, "/")[0] == 404


# In a process of its own: a process has one meter provider, for good.
EXPORTED = """
import sys, urllib.request
from structlog.testing import capture_logs
from bulkgrpc import metrics
from bulkgrpc.telemetry import Probes, Telemetry
metrics.records_written.add(3)
metrics.processing_latency.record(9)
telemetry = Telemetry(metrics.Process.WORKER, {})
metrics.records_written.add(3)
metrics.processing_latency.record(0.3)
with capture_logs() as lines:
    telemetry.serve("127.0.0.1:0", Probes(str, str))
sys.stdout.write(urllib.request.urlopen(f"http://{lines[0]['address']}/metrics").read().decode())
telemetry.stop()
"""


def test_every_exported_metric_has_the_name_that_the_page_says() -> None:
    done = subprocess.run([sys.executable, "-c", EXPORTED], capture_output=True, text=True, timeout=60, check=True)
    exported = set(re.findall(r"^# TYPE (bulkgrpc_\w+)", done.stdout, re.MULTILINE))
    names = {one.prometheus for one in metrics.REGISTRY}
    assert {"bulkgrpc_records_written_total", "bulkgrpc_processing_latency_seconds"} <= exported <= names
    assert "bulkgrpc_records_written_total 3.0" in done.stdout
    assert "bulkgrpc_messages_dead_total 0.0" in done.stdout
    assert 'bulkgrpc_processing_latency_seconds_bucket{le="0.5"} 1.0' in done.stdout


def test_a_port_that_is_taken_is_passed_over(telemetry: Telemetry, state: State) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        address = served(telemetry, f"127.0.0.1:{port}", state)
        assert int(address.rpartition(":")[2]) > port
        assert get(address, "/livez")[0] == 200


@pytest.mark.parametrize("listen", ["9464", "127.0.0.1", "127.0.0.1:99999", ":9464", "127.0.0.1:http"])
def test_a_wrong_address_names_the_variable(telemetry: Telemetry, state: State, listen: str) -> None:
    with pytest.raises(WrongTelemetry, match="BULKGRPC_METRICS_LISTEN"):
        served(telemetry, listen, state)


def test_a_protocol_that_cannot_be_had_names_the_variable() -> None:
    with pytest.raises(WrongTelemetry, match="OTEL_EXPORTER_OTLP_PROTOCOL: only http/protobuf"):
        Telemetry(
            metrics.Process.WORKER,
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        )


def test_a_worker_is_ready_once_it_polls_and_live_while_it_does() -> None:
    now_s, stepped_at_s = 100.0, 0.0
    stopping = threading.Event()
    health = WorkerHealth(stopping, lambda: now_s)
    assert (health.live(), health.ready()) == ("", "the worker starts")
    health.watch(lambda: stepped_at_s)
    assert health.ready() == "the worker starts"
    stepped_at_s = 100.0
    assert (health.live(), health.ready()) == ("", "")
    now_s = 161.0
    assert health.live() == "the poll loop has not moved for 61 s"
    stopping.set()
    assert (health.live(), health.ready()) == ("", "the worker drains")


async def test_a_server_is_ready_from_its_announcement_to_its_drain() -> None:
    health = ServerHealth()
    assert (health.live(), health.ready()) == ("", "the server starts")
    health.serves()
    assert health.ready() == ""
    health.drains()
    assert (health.live(), health.ready()) == ("", "the server drains")
