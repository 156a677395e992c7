"""The token of SASL/OAUTHBEARER that a command prints: of a cloud's command line, or of a sidecar's file by `cat`."""

from __future__ import annotations

import shlex
import subprocess
import time
from typing import Any

import jwt

TIMEOUT_S = 10.0
UNKNOWN_LIFE_S = 300.0
"""How long a token counts as valid that is no JWT, or has no expiry."""


class NoToken(Exception):
    """The command printed no token; `str()` says why."""


def token_of(command: str) -> tuple[str, float]:
    """Run a command; return the token that it prints, and when that expires, seconds since 1970. Raises NoToken.

    librdkafka calls it again after four fifths of that time.
    """
    try:
        done = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip().splitlines()
        raise NoToken(f"the token command ended with {error.returncode}: {said[-1] if said else ''}") from error
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise NoToken(f"the token command failed: {error}") from error
    token = done.stdout.strip()
    if not token:
        raise NoToken("the token command printed nothing")
    return token, _expiry(token)


def _expiry(token: str) -> float:
    # The broker verifies it; here only its expiry is of interest.
    try:
        claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
        return float(claims["exp"])
    except (jwt.InvalidTokenError, KeyError, TypeError, ValueError):
        return time.time() + UNKNOWN_LIFE_S
