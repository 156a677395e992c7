"""Why Redis does not serve a call: what an operator can do differs. Pure."""

from __future__ import annotations

import enum
import socket
import ssl
from collections.abc import Iterator
from typing import Final

from redis import exceptions
from redis.asyncio.sentinel import MasterNotFoundError


class Cause(enum.StrEnum):
    """Why Redis does not serve a call; `remedy` is what to check, "" if it passes by itself."""

    remedy: str

    def __new__(cls, name: str, remedy: str) -> Cause:
        """Make a member from its name and remedy."""
        cause = str.__new__(cls, name)
        cause._value_ = name
        cause.remedy = remedy
        return cause

    UNREACHABLE = ("unreachable", "")
    """It does not answer, or not in time."""
    UNKNOWN_HOST = ("unknown_host", "check the host name in BULKGRPC_REDIS")
    NOT_LISTENING = ("not_listening", "check host and port in BULKGRPC_REDIS, and whether Redis runs there")
    NO_PRIMARY = ("no_primary", "check the name of the service in BULKGRPC_REDIS, and what the sentinels know of it")
    LOADING = ("loading", "")
    """It starts, or waits for its primary."""
    WRONG_PASSWORD = ("wrong_password", "check the user and the password in BULKGRPC_REDIS")
    MISSING_RIGHT = ("missing_right", "give the user in BULKGRPC_REDIS the commands and the keys bulk:*")
    TLS = ("tls", "check scheme, host name and ssl_ca_certs in BULKGRPC_REDIS, and the server's certificate")
    WRONG_SERVER = (
        "wrong_server",
        "let BULKGRPC_REDIS name a Redis or Valkey server that is no cluster, or sentinels by redis+sentinel://",
    )
    OUT_OF_MEMORY = ("out_of_memory", "raise maxmemory")
    READ_ONLY = ("read_only", "let BULKGRPC_REDIS name the primary")
    REFUSED = ("refused", "")
    """Any other error that it answers."""


_CAUSES: Final[tuple[tuple[tuple[type[BaseException], ...], Cause], ...]] = (
    ((ssl.SSLError, FileNotFoundError), Cause.TLS),
    ((socket.gaierror,), Cause.UNKNOWN_HOST),
    ((ConnectionRefusedError,), Cause.NOT_LISTENING),
    ((MasterNotFoundError,), Cause.NO_PRIMARY),
    ((exceptions.AuthenticationError, exceptions.AuthorizationError), Cause.WRONG_PASSWORD),
    ((exceptions.NoPermissionError,), Cause.MISSING_RIGHT),
    ((exceptions.OutOfMemoryError,), Cause.OUT_OF_MEMORY),
    ((exceptions.ReadOnlyError,), Cause.READ_ONLY),
    ((exceptions.BusyLoadingError, exceptions.MasterDownError, exceptions.TryAgainError), Cause.LOADING),
    (
        (exceptions.InvalidResponse, exceptions.AskError, exceptions.ClusterError, exceptions.ClusterCrossSlotError),
        Cause.WRONG_SERVER,
    ),
)
_TEXTS: Final = (
    # Errors of commands inside a script keep their code only in the text.
    ("has no permissions", Cause.MISSING_RIGHT),
    ("ACL failure in script", Cause.MISSING_RIGHT),
    ("NOPERM", Cause.MISSING_RIGHT),
    ("READONLY", Cause.READ_ONLY),
    ("OOM command not allowed", Cause.OUT_OF_MEMORY),
    ("unknown command", Cause.WRONG_SERVER),
    ("Protocol Error", Cause.WRONG_SERVER),
)


def cause_of(error: BaseException) -> Cause:
    """Return why a call failed, by the error and those that it was raised from."""
    for one in _chain(error):
        for classes, cause in _CAUSES:
            if isinstance(one, classes):
                return cause
    if isinstance(error, exceptions.RedisError):
        for text, cause in _TEXTS:
            if text in str(error):
                return cause
        if isinstance(error, exceptions.ResponseError):
            return Cause.REFUSED
    return Cause.UNREACHABLE


def _chain(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__
