"""Who may do what, with tokens that the test signs."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from bulkgrpc.client import AsyncBulkClient, Batch, ClientConfig
from bulkgrpc.errors import Reason, Refusal
from bulkgrpc.ingest import identity
from bulkgrpc.server.cannot_serve import CannotServe
from bulkgrpc.server.serving import serving
from bulkgrpc.settings import ServerSettings
from bulkgrpc.v1 import datasets_pb2, jobs_pb2
from tests.integration.server_peer import (
    DATASET,
    ServeWith,
    a_key,
    batch,
    header,
    next_answer,
    peer,
    refusal,
    registration,
)

pytest_plugins = ["tests.integration.server_parts"]

ISSUER = "https://issuer.test"
ALL = "bulk.write bulk.read bulk.admin"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ALGORITHMS: dict[str, tuple[Any, Any]] = {
    "RS256": (RSA_KEY, jwt.algorithms.RSAAlgorithm),
    "ES256": (EC_KEY, jwt.algorithms.ECAlgorithm),
    "EdDSA": (ED_KEY, jwt.algorithms.OKPAlgorithm),
}


def key_set() -> str:
    keys = []
    for name, (key, algorithm) in ALGORITHMS.items():
        entry: dict[str, str] = json.loads(algorithm.to_jwk(key.public_key()))
        keys.append({**entry, "kid": name, "use": "sig"})
    return json.dumps({"keys": keys})


def claims(**changes: Any) -> dict[str, Any]:
    usual = {"tenant": "acme", "scope": ALL, "iss": ISSUER, "aud": "bulkgrpc", "exp": int(time.time()) + 60}
    return {name: value for name, value in {**usual, **changes}.items() if value is not None}


def sign(algorithm: str = "RS256", key: Any = None, kid: str = "", **changes: Any) -> str:
    key = key or ALGORITHMS[algorithm][0]
    return jwt.encode(claims(**changes), key, algorithm, headers={"kid": kid or algorithm})


def unsigned() -> str:
    return jwt.encode(claims(), "", "none", headers={"kid": "RS256"})


def signed_with_the_public_key_as_a_secret() -> str:
    public = RSA_KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    # PyJWT refuses to make such a token: put it together by hand.
    return hand_made({"alg": "HS256", "kid": "RS256", "typ": "JWT"}, public)


def hand_made(head: dict[str, str], secret: bytes) -> str:
    def part(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    signed = part(json.dumps(head).encode()) + b"." + part(json.dumps(claims()).encode())
    return (signed + b"." + part(hmac.new(secret, signed, hashlib.sha256).digest())).decode()


@pytest.fixture
def serve_for_tokens(serve_with: ServeWith, tmp_path: Path) -> Callable[[], Any]:
    file = tmp_path / "jwks.json"
    file.write_text(key_set())
    return lambda: serve_with(auth="jwt", jwks=str(file), jwt_issuer=ISSUER)


async def refused_token(serve: Callable[[], Any], token: str) -> tuple[grpc.StatusCode, Refusal]:
    async with serve() as (running, _), peer(running.address, token=token) as client:
        return await refusal(client.whole(header()))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_good_token_may_register_submit_and_read(serve_for_tokens: Callable[[], Any], algorithm: str) -> None:
    async with serve_for_tokens() as (running, _), peer(running.address, token=sign(algorithm)) as client:
        await client.register()
        job = (await client.submit(header(), batch(0))).job
        assert job.name.startswith("tenants/acme/jobs/")
        assert (await client.job(job.name)).counts.accepted == 2


async def test_a_call_without_a_token_is_refused(serve_for_tokens: Callable[[], Any]) -> None:
    code, refused = await refused_token(serve_for_tokens, "")
    assert (code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, Reason.NO_TOKEN)
    assert "authorization: Bearer" in refused.message


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (lambda: sign(exp=int(time.time()) - 60), "expired"),
        (lambda: sign(exp=None), "exp"),
        (lambda: sign(iss="https://other.test"), "ssuer"),
        (lambda: sign(iss=None), "iss"),
        (lambda: sign(aud="other"), "udience"),
        (lambda: sign(aud=None), "aud"),
        (lambda: sign(tenant=None), "tenant"),
        (lambda: sign(tenant="a/b"), "tenant"),
        (lambda: sign(key=OTHER_KEY), "ignature"),
        (lambda: sign(kid="unknown"), "key"),
        (lambda: sign("ES256", kid="RS256"), "not accepted"),
        (unsigned, "algorithm"),
        (signed_with_the_public_key_as_a_secret, "algorithm"),
        (lambda: "no.token.atall", "not accepted"),
        (lambda: "x" * 9000, "longer"),
    ],
)
async def test_a_bad_token_is_refused_saying_why(
    serve_for_tokens: Callable[[], Any], token: Callable[[], str], says: str
) -> None:
    code, refused = await refused_token(serve_for_tokens, token())
    assert (code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, Reason.INVALID_TOKEN)
    assert says in refused.message


async def test_each_right_needs_its_scope(serve_for_tokens: Callable[[], Any]) -> None:
    async with serve_for_tokens() as (running, _), peer(running.address, token=sign(scope="other")) as client:
        for call, scope in (
            (client.whole(header()), "bulk.write"),
            (client.job("tenants/acme/jobs/x"), "bulk.read"),
            (client.jobs.ListJobs(jobs_pb2.ListJobsRequest(), metadata=client.metadata), "bulk.read"),
            (client.datasets.RegisterDataset(registration(), metadata=client.metadata), "bulk.admin"),
            (client.datasets.PauseDataset(datasets_pb2.PauseDatasetRequest(), metadata=client.metadata), "bulk.admin"),
            (
                client.datasets.DiscardParked(datasets_pb2.DiscardParkedRequest(), metadata=client.metadata),
                "bulk.admin",
            ),
        ):
            code, refused = await refusal(call)
            assert (code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, Reason.MISSING_SCOPE)
            assert scope in refused.message


async def test_a_token_acts_for_no_other_tenant(serve_for_tokens: Callable[[], Any]) -> None:
    async with serve_for_tokens() as (running, _), peer(running.address, "other", sign()) as client:
        code, refused = await refusal(client.whole(header()))
        assert (code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, Reason.FOREIGN_TENANT)


async def test_a_stream_ends_when_its_token_has_expired_and_continues_with_a_new_one(
    serve_for_tokens: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "LEEWAY_S", 0)
    key = a_key()
    async with serve_for_tokens() as (running, _):
        async with peer(running.address, token=sign()) as client:
            await client.register()
        async with peer(running.address, token=sign(exp=int(time.time()) + 3)) as client:
            call = client.stream()
            await call.write(header(idempotency_key=key))
            await next_answer(call)
            await call.write(batch(0))
            assert (await next_answer(call)).acknowledged.next_sequence == 1
            code, refused = await refusal(next_answer(call))
            assert (code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, Reason.TOKEN_EXPIRED)
        async with peer(running.address, token=sign()) as client:
            answers = await client.whole(header(idempotency_key=key), batch(1))
            assert answers[0].opened.next_sequence == 1
            assert answers[-1].sealed.job.counts.accepted == 4


async def test_a_client_with_a_token_function_continues_a_stream_whose_token_expires(
    serve_for_tokens: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "LEEWAY_S", 0)
    called: list[str] = []
    second = asyncio.Event()
    records = Batch.of(batch(0).batch.SerializeToString())

    async def token() -> str:
        called.append(sign(exp=int(time.time()) + (60 if called else 3)))
        if len(called) == 2:
            second.set()
        return called[-1]

    async def source() -> AsyncIterator[Batch]:
        yield records
        await second.wait()
        yield records

    never_again = ClientConfig(retry_deadline_s=0.001)
    async with serve_for_tokens() as (running, _), peer(running.address, token=sign()) as admin:
        await admin.register()
        async with AsyncBulkClient(running.address, token=token, config=never_again) as client:
            job = await client.submit(DATASET, source())
            assert (await job.get()).counts.accepted == 4
    assert len(called) == 2


@pytest.mark.parametrize("missing", ["jwks", "audience"])
async def test_what_would_accept_any_token_or_none_stops_the_start(
    server_settings: ServerSettings, tmp_path: Path, missing: str
) -> None:
    file = tmp_path / "jwks.json"
    if missing != "jwks":
        file.write_text(key_set())
    audience = "" if missing == "audience" else "bulkgrpc"
    settings = server_settings.model_copy(update={"auth": "jwt", "jwks": str(file), "jwt_audience": audience})
    with pytest.raises(CannotServe, match=f"BULKGRPC_.*{missing.upper()}"):
        async with serving(settings):
            pass


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0"])
async def test_no_authentication_on_an_open_address_stops_the_start_unless_it_is_asked_for(
    server_settings: ServerSettings, listen: str
) -> None:
    with pytest.raises(CannotServe, match="BULKGRPC_AUTH=none"):
        async with serving(server_settings.model_copy(update={"listen": listen})):
            pass
    async with serving(server_settings.model_copy(update={"listen": listen, "auth_none_anywhere": True})) as running:
        assert running.address
