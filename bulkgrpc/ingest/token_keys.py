"""The keys that verify tokens: a JSON Web Key Set from a file or a URL, read again when a key is unknown.

However many tokens have unknown keys, the issuer is queried at most once per REFRESH_MIN_S, by one call at a time.
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
"""Age at which the set is read again even if every key is known: issuers also withdraw keys."""
FETCH_TIMEOUT_S: Final = 5.0
SET_BYTES_MAX: Final = 1024 * 1024
KEY_TYPES: Final = frozenset({"RSA", "EC", "OKP"})
"""Public keys only: a symmetric key in the set would let every reader of the set sign."""

_log = structlog.get_logger()
Read = Callable[[], bytes]


class KeySet:
    """The keys by ID. `read` returns the set's JSON and may block; it is called on a thread."""

    def __init__(self, read: Read, clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._clock = clock
        self._keys: Mapping[str | None, jwt.PyJWK] = {}
        self._read_at_s = float("-inf")
        self._reading = asyncio.Lock()

    @classmethod
    def at(cls, place: str) -> KeySet:
        """Return the set at a path or an https URL (http only on this machine).

        Raises ValueError for another URL, and for a file that is no key set; a URL may answer later.
        """
        parts = urllib.parse.urlsplit(place)
        local = parts.hostname in ("127.0.0.1", "::1", "localhost")
        if parts.scheme == "https" or (parts.scheme == "http" and local):
            return cls(lambda: _fetch(place))
        if "://" in place or not place:
            raise ValueError(f"BULKGRPC_JWKS {place!r} is neither a path nor an https URL")
        try:
            parse(Path(place).read_bytes())
        except (OSError, ValueError) as error:
            raise ValueError(f"BULKGRPC_JWKS {place!r} cannot be read: {error}") from error
        return cls(Path(place).read_bytes)

    async def find(self, key_id: object) -> jwt.PyJWK | None:
        """Return a key by ID; without an ID, the only key of the set. None if the set, refreshed if due, lacks it.

        Raises Unavailable (KEYS_UNAVAILABLE) if the set has never been read.
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
                    _log.warning("key_set_unreadable", error=str(error))
        if not self._keys:
            raise Unavailable(
                Reason.KEYS_UNAVAILABLE, "the keys that verify tokens cannot be read now: retry in a moment"
            )


def parse(text: bytes) -> Mapping[str | None, jwt.PyJWK]:
    """Parse a JSON Web Key Set without keys that cannot verify tokens. Raises ValueError if it is not a key set."""
    found = json.loads(text)
    if not isinstance(found, dict) or not isinstance(found.get("keys"), list):
        raise ValueError("not a JSON Web Key Set: it has no list `keys`")
    keys: dict[str | None, jwt.PyJWK] = {}
    for entry in found["keys"]:
        if isinstance(entry, dict) and entry.get("kty") in KEY_TYPES and entry.get("use", "sig") == "sig":
            try:
                key = jwt.PyJWK(entry)
            except jwt.PyJWTError as error:
                _log.warning("key_ignored", key_id=entry.get("kid"), error=str(error))
            else:
                keys[key.key_id] = key
    return keys


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=FETCH_TIMEOUT_S) as answer:  # noqa: S310 — `at` allows https only
        text: bytes = answer.read(SET_BYTES_MAX)
    return text
