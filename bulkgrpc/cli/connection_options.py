"""The options with which every command finds its server, and the client that they configure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from bulkgrpc.client import AsyncBulkClient, BulkClient, Tls
from bulkgrpc.client.config import DEFAULT_TARGET

ServerOption = Annotated[
    str, typer.Option("--server", envvar="BULKGRPC_SERVER", metavar="HOST:PORT", help="The server's address.")
]
TenantOption = Annotated[
    str,
    typer.Option(
        "--tenant",
        envvar="BULKGRPC_TENANT",
        help='The tenant. Default: the tenant of the token; without a token, the tenant "default".',
    ),
]
TokenOption = Annotated[
    str, typer.Option("--token", envvar="BULKGRPC_TOKEN", show_envvar=True, help="JSON Web Token of the caller.")
]
TlsCaOption = Annotated[
    Path | None,
    typer.Option(
        "--tls-ca",
        envvar="BULKGRPC_TLS_CA",
        help="PEM file of the certificate authorities to trust. It enables TLS. Default: no TLS.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")]

SERVER = DEFAULT_TARGET


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """The server to call, and the caller's identity."""

    server: str = SERVER
    tenant: str = ""
    token: str = ""
    tls_ca: Path | None = None

    def _tls(self) -> Tls | None:
        return None if self.tls_ca is None else Tls(ca=self.tls_ca)

    def client(self) -> BulkClient:
        """Return a blocking client. The caller closes it."""
        return BulkClient(self.server, tenant=self.tenant, token=self.token, tls=self._tls())

    def async_client(self) -> AsyncBulkClient:
        """Return a client for the running event loop. The caller closes it."""
        return AsyncBulkClient(self.server, tenant=self.tenant, token=self.token, tls=self._tls())

    def job_name(self, job: str) -> str:
        """Return a job's resource name. job: the name, or only the ID."""
        return job if "/" in job else f"tenants/{self.tenant or 'default'}/jobs/{job}"
