"""The keys that tokens are signed with: a JSON Web Key Set from a file or a URL, read again when a key is not known.

However many tokens with unknown keys come, the issuer is asked once in REFRESH_MIN_S, by one call at a time.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import jwt
import structlog

from bulkgrpc.errors import Reason, Unavailable

REFRESH_MIN_S: Final = 10.0
REFRESH_MAX_S: Final = 300.0
"""After this the set is read again even if every key is known: keys are also withdrawn."""
FETCH_TIMEOUT_S: Final = 5.0
SET_BYTES_MAX: Final = 1024 * 1024
KEY_TYPES: Final = frozenset({"RSA", "EC", "OKP"})
"""Public keys only: a symmetric key in the set would let whoever reads it sign."""

_log = structlog.get_logger()
Read = Callable[[], bytes]


class KeySet:
    """The keys by id. `read` returns the set's JSON and may block; it is called on a thread."""

    def __init__(self, read: Read, clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._clock = clock
        self._keys: Mapping[str | None, jwt.PyJWK] = {}
        self._read_at_s = float("-inf")
        self._reading = asyncio.Lock()

    @classmethod
    def at(cls, place: str) -> KeySet:
        """Return the set at a path or an https URL (http only on this machine). Raises ValueError for another URL."""
        parts = urllib.parse.urlsplit(place)
        local = parts.hostname in ("127.0.0.1", "::1", "localhost")
        if parts.scheme == "https" or (parts.scheme == "http" and local):
            return cls(lambda: _fetch(place))
        if "://" in place or not place:
            raise ValueError(f"BULKGRPC_JWKS {place!r} is neither a path nor an https URL")
        return cls(Path(place).read_bytes)

    async def find(self, key_id: object) -> jwt.PyJWK | None:
        """Return a key; without an id the only key there is. None if the set, read anew if allowed, has it not.

        Raises Unavailable if the set could not be read even once.
        """
        key = self._lookup(key_id)
        if key is not None and self._clock() - self._read_at_s < REFRESH_MAX_S:
            return key
        await self._refresh(REFRESH_MIN_S)
        return self._lookup(key_id)

    def _lookup(self, key_id: object) -> jwt.PyJWK | None:
        if isinstance(key_id, str):
            return self._keys.get(key_id)
        return next(iter(self._keys.values())) if key_id is None and len(self._keys) == 1 else None

    async def _refresh(self, at_most_every_s: float) -> None:
        async with self._reading:
            if self._clock() - self._read_at_s >= at_most_every_s:
                self._read_at_s = self._clock()
                try:
                    self._keys = parse(await asyncio.to_thread(self._read))
                except (OSError, ValueError, jwt.PyJWTError) as error:
                    _log.warning("the key set cannot be read; known keys stay", error=str(error))
        if not self._keys:
            raise Unavailable(
                Reason.POSTGRES_UNAVAILABLE,
                "the keys that tokens are checked with cannot be read now: try again in a moment",
            )


def parse(text: bytes) -> Mapping[str | None, jwt.PyJWK]:
    """Read a JSON Web Key Set; keys that cannot sign for us are left out. Raises ValueError if it is none."""
    found = json.loads(text)
    if not isinstance(found, dict) or not isinstance(found.get("keys"), list):
        raise ValueError("no JSON Web Key Set: it has no list `keys`")
    keys: dict[str | None, jwt.PyJWK] = {}
    for entry in found["keys"]:
        if isinstance(entry, dict) and entry.get("kty") in KEY_TYPES and entry.get("use", "sig") == "sig":
            try:
                key = jwt.PyJWK(entry)
            except jwt.PyJWTError as error:
                _log.warning("a key of the key set is left out", key_id=entry.get("kid"), error=str(error))
            else:
                keys[key.key_id] = key
    return keys


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=FETCH_TIMEOUT_S) as answer:  # noqa: S310 — `at` allows https only
        text: bytes = answer.read(SET_BYTES_MAX)
    return text
