"""Identity of a caller: from the credentials of a call to a tenant and its scopes."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NoReturn, Protocol

import jwt

from bulkgrpc.errors import Denied, Reason, Unauthenticated
from bulkgrpc.ingest.refusals import invalid_field
from bulkgrpc.ingest.token_keys import KeySet
from bulkgrpc.model import is_tenant
from bulkgrpc.settings import ServerSettings

WRITE: Final = "bulk.write"
READ: Final = "bulk.read"
ADMIN: Final = "bulk.admin"
SCOPES: Final = frozenset({WRITE, READ, ADMIN})
TENANT_METADATA: Final = "bulkgrpc-tenant"
DEFAULT_TENANT: Final = "default"
ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")
"""Never from the token's header: a token must not choose how it is verified (RFC 8725)."""
LEEWAY_S: Final = 10
EXPIRY_LOOK_S: Final = 60.0
EXPIRED_RETRY_AFTER_S: Final = 0.1
"""A client that has a new token continues at once."""
TOKEN_CHARS_MAX: Final = 8192


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a call says of its caller. authorization: `Bearer TOKEN`. tenant: the one it names. Both "" if absent."""

    authorization: str = ""
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Caller:
    """A tenant and its scopes. expire_time: of its token; None if it has none."""

    tenant: str
    scopes: frozenset[str]
    expire_time: datetime | None = None

    def require(self, scope: str) -> None:
        """Check that the caller has a scope. Raises Denied (MISSING_SCOPE) naming it."""
        if scope not in self.scopes:
            raise Denied(
                Reason.MISSING_SCOPE, f"the token lacks the scope {scope}: request a token that has it", scope=scope
            )

    def require_tenant(self, tenant: str) -> None:
        """Check that the caller acts for itself. Raises Denied (FOREIGN_TENANT)."""
        if tenant != self.tenant:
            raise Denied(
                Reason.FOREIGN_TENANT, f"the caller is tenant {self.tenant} and may not act for tenant {tenant}"
            )


class Identification(Protocol):
    """A way to identify callers."""

    async def identify(self, credentials: Credentials) -> Caller:
        """Return the caller. Raises Unauthenticated, Denied or Invalid."""


class TrustedIdentification:
    """auth=none: the tenant is the one that the call names, with all scopes."""

    async def identify(self, credentials: Credentials) -> Caller:
        """Return the caller. Raises Invalid if the call names an invalid tenant."""
        return Caller(_named_tenant(credentials) or DEFAULT_TENANT, SCOPES)


class TokenIdentification:
    """auth=jwt: the tenant and its scopes are claims of a signed token."""

    def __init__(self, keys: KeySet, audience: str, issuer: str) -> None:
        self._keys = keys
        self._audience = audience
        self._issuer = issuer

    async def identify(self, credentials: Credentials) -> Caller:
        """Return the caller.

        Raises Unauthenticated (NO_TOKEN, INVALID_TOKEN), Denied (FOREIGN_TENANT), Unavailable (KEYS_UNAVAILABLE).
        """
        claims = await self._claims(_bearer_token(credentials.authorization))
        tenant, scope = claims.get("tenant"), claims.get("scope", "")
        if not isinstance(tenant, str) or not is_tenant(tenant):
            raise invalid_token("its claim `tenant` is missing or is not a tenant's name")
        if not isinstance(scope, str):
            raise invalid_token("its claim `scope` is not a string of scopes separated by spaces")
        caller = Caller(tenant, SCOPES & set(scope.split()), _time_of(claims["exp"]))
        caller.require_tenant(_named_tenant(credentials) or tenant)
        return caller

    async def _claims(self, token: str) -> Mapping[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in ALGORITHMS:
                raise invalid_token(f"its algorithm is not one of {', '.join(ALGORITHMS)}")
            key = await self._keys.find(header.get("kid"))
            if key is None:
                raise invalid_token("its key is not in the key set")
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=self._audience,
                issuer=self._issuer or None,
                leeway=LEEWAY_S,
                options={"require": ["exp", "aud", *(["iss"] if self._issuer else [])]},
            )
        except jwt.ExpiredSignatureError as error:
            raise invalid_token("it has expired") from error
        except jwt.InvalidTokenError as error:
            raise invalid_token(str(error) or type(error).__name__) from error
        return claims


def identification_for(settings: ServerSettings) -> Identification:
    """Return the identification that the settings select. Raises ValueError, which names the variable that is wrong."""
    if settings.auth == "none":
        if not (settings.auth_none_anywhere or _is_local(settings.listen)):
            raise ValueError(
                f"BULKGRPC_AUTH=none at {settings.listen} lets everyone who reaches it act as any tenant: set "
                "BULKGRPC_AUTH=jwt, listen on 127.0.0.1, or, if something in front of it authenticates, set "
                "BULKGRPC_AUTH_NONE_ANYWHERE=true"
            )
        return TrustedIdentification()
    if not settings.jwt_audience:
        raise ValueError("BULKGRPC_JWT_AUDIENCE is empty: tokens for any service would be accepted")
    return TokenIdentification(KeySet.at(settings.jwks), settings.jwt_audience, settings.jwt_issuer)


def _is_local(listen: str) -> bool:
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.startswith("unix")


def _time_of(expiry: Any) -> datetime:
    """Return when a token is not accepted any more. Raises Unauthenticated."""
    try:
        return datetime.fromtimestamp(int(expiry) + LEEWAY_S, UTC)
    except (ValueError, OverflowError, OSError, TypeError) as error:
        raise invalid_token("its claim `exp` is no time") from error


async def until_expired(expire_time: datetime, now: Callable[[], datetime]) -> NoReturn:
    """Wait until a caller's token has expired. Raises Unauthenticated (TOKEN_EXPIRED) then."""
    while (left_s := (expire_time - now()).total_seconds()) > 0:  # noqa: ASYNC110 — it waits for a time
        # In steps: the clock may be set meanwhile.
        await asyncio.sleep(min(left_s, EXPIRY_LOOK_S))
    raise Unauthenticated(
        Reason.TOKEN_EXPIRED,
        "the token of the stream has expired; what was acknowledged is stored: open the job again with a new token",
        retry_after_s=EXPIRED_RETRY_AFTER_S,
    )


def invalid_token(why: str) -> Unauthenticated:
    """Return the refusal of a token."""
    return Unauthenticated(
        Reason.INVALID_TOKEN, f"the token is not accepted: {why}; request a new one from your issuer"
    )


def _bearer_token(authorization: str) -> str:
    kind, _, token = authorization.partition(" ")
    if kind.lower() != "bearer" or not token.strip():
        raise Unauthenticated(Reason.NO_TOKEN, "the call has no token: send metadata `authorization: Bearer TOKEN`")
    if len(token) > TOKEN_CHARS_MAX:
        raise invalid_token(f"it is longer than {TOKEN_CHARS_MAX} characters")
    return token.strip()


def _named_tenant(credentials: Credentials) -> str:
    tenant = credentials.tenant
    if tenant and not is_tenant(tenant):
        raise invalid_field(
            TENANT_METADATA,
            f"metadata {TENANT_METADATA} is not a tenant's name: 1 to 63 letters, digits, `_`, `.`, `-`",
        )
    return tenant
