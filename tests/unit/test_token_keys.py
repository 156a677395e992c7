"""The keys that verify tokens."""

from __future__ import annotations

import asyncio
import json

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from bulkgrpc.errors import Reason, Unavailable
from bulkgrpc.ingest import token_keys
from bulkgrpc.ingest.token_keys import KeySet

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def key_set(*names: str) -> bytes:
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key()))
    return json.dumps({"keys": [{**public, "kid": name} for name in names]}).encode()


async def test_a_flood_of_unknown_keys_queries_the_issuer_once_per_interval() -> None:
    asked, now_s = 0, 0.0

    def read() -> bytes:
        nonlocal asked
        asked += 1
        return key_set("one") if asked < 3 else key_set("one", "two")

    found = KeySet(read, clock=lambda: now_s)
    assert await found.find("one") is not None
    assert await asyncio.gather(*(found.find("two") for _ in range(100))) == [None] * 100
    assert asked == 1
    now_s = token_keys.REFRESH_MIN_S
    await asyncio.gather(*(found.find("two") for _ in range(100)))
    assert asked == 2
    now_s = 2 * token_keys.REFRESH_MIN_S
    assert await found.find("two") is not None
    assert asked == 3


async def test_known_keys_stay_while_the_issuer_is_unavailable_and_without_any_a_call_is_retriable() -> None:
    unavailable, now_s = False, 0.0

    def read() -> bytes:
        if unavailable:
            raise OSError("unavailable")
        return key_set("one")

    found = KeySet(read, clock=lambda: now_s)
    await found.find("one")
    unavailable, now_s = True, token_keys.REFRESH_MAX_S
    assert await found.find("one") is not None
    with pytest.raises(Unavailable) as caught:
        await KeySet(read, clock=lambda: now_s).find("one")
    assert caught.value.reason is Reason.KEYS_UNAVAILABLE
    assert caught.value.retry_after_s > 0


def test_a_symmetric_key_in_the_set_is_no_key() -> None:
    secret = {"kty": "oct", "k": "c2VjcmV0", "kid": "one", "alg": "HS256"}
    assert token_keys.parse(json.dumps({"keys": [secret]}).encode()) == {}


@pytest.mark.parametrize("place", ["", "http://issuer.test/jwks", "ftp://issuer.test/jwks"])
def test_a_key_set_is_a_path_or_https(place: str) -> None:
    with pytest.raises(ValueError, match="https"):
        KeySet.at(place)
