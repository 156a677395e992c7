"""Who calls, and what they may do: from the metadata of a call to a tenant and scopes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import jwt

from bulkgrpc.errors import Denied, Invalid, Reason, Unauthenticated
from bulkgrpc.model import is_tenant
from bulkgrpc.server.keys import KeySet
from bulkgrpc.settings import ServerSettings

WRITE: Final = "bulk.write"
READ: Final = "bulk.read"
ADMIN: Final = "bulk.admin"
SCOPES: Final = frozenset({WRITE, READ, ADMIN})
TENANT_METADATA: Final = "bulkgrpc-tenant"
DEFAULT_TENANT: Final = "default"
ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")
"""Never from the token's header: a token must not choose how it is checked (RFC 8725)."""
LEEWAY_S: Final = 10
TOKEN_CHARS_MAX: Final = 8192

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Caller:
    """A tenant and what it may do."""

    tenant: str
    scopes: frozenset[str]

    def require(self, scope: str) -> None:
        """Check that the caller has a scope. Raises Denied (MISSING_SCOPE) naming it."""
        if scope not in self.scopes:
            raise Denied(
                Reason.MISSING_SCOPE, f"the token lacks the scope {scope}: ask for a token that has it", scope=scope
            )

    def require_tenant(self, tenant: str) -> None:
        """Check that the caller acts for itself. Raises Denied (FOREIGN_TENANT)."""
        if tenant != self.tenant:
            raise Denied(
                Reason.FOREIGN_TENANT, f"the caller is tenant {self.tenant} and may not act for tenant {tenant}"
            )


class Callers(Protocol):
    """A way to tell who calls."""

    async def identify(self, metadata: Metadata) -> Caller:
        """Return the caller. Raises Unauthenticated, Denied or Invalid."""


class TrustedCallers:
    """auth=none: the tenant is what the metadata says, and may do everything."""

    async def identify(self, metadata: Metadata) -> Caller:
        """Return the caller. Raises Invalid if the metadata's tenant is no tenant's name."""
        return Caller(_named_tenant(metadata) or DEFAULT_TENANT, SCOPES)


class TokenCallers:
    """auth=jwt: the tenant and its scopes are what a signed token says."""

    def __init__(self, keys: KeySet, audience: str, issuer: str) -> None:
        self._keys = keys
        self._audience = audience
        self._issuer = issuer

    async def identify(self, metadata: Metadata) -> Caller:
        """Return the caller. Raises Unauthenticated (NO_TOKEN, INVALID_TOKEN), Denied (FOREIGN_TENANT)."""
        pairs = list(metadata)
        claims = await self._claims(_bearer(pairs))
        tenant, scope = claims.get("tenant"), claims.get("scope", "")
        if not isinstance(tenant, str) or not is_tenant(tenant):
            raise invalid_token("it has no claim `tenant` that names one")
        if not isinstance(scope, str):
            raise invalid_token("its claim `scope` is no text of scopes with spaces between")
        caller = Caller(tenant, SCOPES & set(scope.split()))
        caller.require_tenant(_named_tenant(pairs) or tenant)
        return caller

    async def _claims(self, token: str) -> Mapping[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in ALGORITHMS:
                raise invalid_token(f"its algorithm is none of {', '.join(ALGORITHMS)}")
            key = await self._keys.find(header.get("kid"))
            if key is None:
                raise invalid_token("its key is none of the key set")
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


def callers_of(settings: ServerSettings) -> Callers:
    """Return the way to tell who calls that the settings ask for."""
    if settings.auth == "none":
        return TrustedCallers()
    return TokenCallers(KeySet.at(settings.jwks), settings.jwt_audience, settings.jwt_issuer)


def invalid_token(why: str) -> Unauthenticated:
    """Return the refusal of a token."""
    return Unauthenticated(Reason.INVALID_TOKEN, f"the token is not accepted: {why}; send a fresh one of your issuer")


def _bearer(pairs: Sequence[tuple[str, str | bytes]]) -> str:
    text = _metadata(pairs, "authorization")
    kind, _, token = text.partition(" ")
    if not text or kind.lower() != "bearer" or not token.strip():
        raise Unauthenticated(Reason.NO_TOKEN, "the call has no token: send metadata `authorization: Bearer TOKEN`")
    if len(token) > TOKEN_CHARS_MAX:
        raise invalid_token(f"it is longer than {TOKEN_CHARS_MAX} characters")
    return token.strip()


def _named_tenant(metadata: Metadata) -> str:
    tenant = _metadata(metadata, TENANT_METADATA)
    if tenant and not is_tenant(tenant):
        raise Invalid(
            Reason.INVALID_FIELD,
            f"metadata {TENANT_METADATA} is no tenant's name: 1 to 63 letters, digits, `_`, `.`, `-`",
            field=TENANT_METADATA,
        )
    return tenant


def _metadata(metadata: Metadata, name: str) -> str:
    for key, value in metadata:
        if key == name:
            return value if isinstance(value, str) else value.decode("ascii", "replace")
    return ""
