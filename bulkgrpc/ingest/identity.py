"""Identity of a caller: from the credentials of a call to a tenant and its scopes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

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
TOKEN_CHARS_MAX: Final = 8192


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a call says of its caller. authorization: `Bearer TOKEN`. tenant: the one it names. Both "" if absent."""

    authorization: str = ""
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Caller:
    """A tenant and its scopes."""

    tenant: str
    scopes: frozenset[str]

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
        caller = Caller(tenant, SCOPES & set(scope.split()))
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
    """Return the identification that the settings select. Raises ValueError if the key set's place is invalid."""
    if settings.auth == "none":
        return TrustedIdentification()
    return TokenIdentification(KeySet.at(settings.jwks), settings.jwt_audience, settings.jwt_issuer)


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
