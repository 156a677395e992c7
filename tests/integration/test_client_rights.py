"""What a server that requires tokens answers a caller without rights."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from bulkgrpc.client import BulkClient, Refused
from bulkgrpc.stack.ports import choose_free
from tests.integration.service_values import Command, Parts
from tests.support import examples
from tests.support.processes import Process, Service

pytest_plugins = ["tests.integration.service_parts"]

KEY = Ed25519PrivateKey.generate()


def token(**claims: object) -> str:
    now = int(time.time())
    defaults = {"iss": "tests", "aud": "bulkgrpc", "sub": "s", "iat": now, "exp": now + 300, "tenant": "acme"}
    return jwt.encode({**defaults, **claims}, KEY, algorithm="EdDSA", headers={"kid": "k1"})


@pytest.fixture(scope="module")
def strict(running: Service, parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that asks for tokens, beside the session's."""
    folder = tmp_path_factory.mktemp("strict")
    public = {**json.loads(OKPAlgorithm.to_jwk(KEY.public_key())), "kid": "k1", "alg": "EdDSA", "use": "sig"}
    (folder / "jwks.json").write_text(json.dumps({"keys": [public]}))
    asks = {"BULKGRPC_AUTH": "jwt", "BULKGRPC_JWKS": str(folder / "jwks.json"), "BULKGRPC_JWT_ISSUER": "tests"}
    address = f"127.0.0.1:{choose_free()}"
    environment = {**parts.environment, **asks}
    server = Process("bulkgrpc.server.process", ("--listen", address), environment, folder / "server.log")
    server.start()
    yield address
    server.stop()


def readings_file(folder: Path) -> Path:
    path = folder / "r.csv"
    path.write_text("sensor_id,value,sampled_at\nS1,1.5,2024-05-01T12:00:00Z\n")
    return path


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("", "error: "),
        ("not-a-token", "error: "),
        (token(scope="bulk.read"), "error: the token lacks the scope bulk.write"),
        (token(scope="bulk.read bulk.write", tenant="other"), "error: "),
    ],
    ids=["no token", "no valid token", "scope missing", "another tenant"],
)
def test_a_load_without_the_right_is_one_line(strict: str, given: str, line: str, tmp_path: Path) -> None:
    result = Command(strict, "acme")("load", readings_file(tmp_path), "--dataset", "sensor_readings", "--token", given)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(line)
    assert "Traceback" not in result.output


def test_a_load_with_the_right_passes_and_the_tenant_is_the_tokens(strict: str, tmp_path: Path) -> None:
    right = token(scope="bulk.read bulk.write")
    report = Command(strict, "").json(
        "load", readings_file(tmp_path), "--dataset", "sensor_readings", "--token", right, "--no-wait"
    )
    assert report["job"]["name"].startswith("tenants/acme/jobs/")


def test_registering_without_the_scope_is_refused_with_its_reason(strict: str) -> None:
    dataset = examples.readings()
    with BulkClient(strict, token=token(scope="bulk.write bulk.read")) as client, pytest.raises(Refused) as caught:
        client.register_dataset(dataset.descriptors, dataset.message_type)
    assert (caught.value.reason, caught.value.retriable) == ("MISSING_SCOPE", False)
