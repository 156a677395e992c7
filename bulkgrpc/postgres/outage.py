"""Why there is no connection to PostgreSQL, and what to check: by the words of libpq, which gives no code. Pure."""

from __future__ import annotations

import re
from typing import Final

import psycopg

VARIABLE: Final = "BULKGRPC_POSTGRES"

_MATCHES: Final = (
    # The first that matches counts: what a server says comes after its address.
    ("failed to resolve host|could not translate host name", "the host name is not known", "check the host"),
    (
        "Connection refused|No such file or directory",
        "the connection is refused",
        "check host and port, and whether PostgreSQL runs and listens there",
    ),
    (
        "timeout expired|timed out|No route to host|Network is unreachable",
        "there is no route, or no answer in time",
        "check the host, and firewalls",
    ),
    ("server does not support SSL", "TLS failed", "let the server use TLS, or check sslmode"),
    (
        "certificate verify failed|root certificate file|server certificate for",
        "TLS failed",
        "check sslrootcert and the host name, and the server's certificate",
    ),
    (
        "certificate|private key|SSL error|SSL negotiation|tlsv1|alert",
        "TLS failed",
        "check sslcert, sslkey and sslmode, and that the port is PostgreSQL's",
    ),
    (
        "password authentication failed|no password supplied|authentication failed",
        "authentication failed",
        "check user and password, or its passfile",
    ),
    (
        "no pg_hba.conf entry|pg_hba.conf rejects|is not permitted to log in|role .* does not exist",
        "the role may not connect",
        "check the user, and pg_hba.conf of the server: its address, and whether it wants TLS",
    ),
    (
        "permission denied for database",
        "the role may not connect",
        "run GRANT CONNECT ON DATABASE, or `bulkgrpc migrate --grant-to`",
    ),
    ("database .* does not exist|no such database", "there is no such database", "check the name, or create it"),
    (
        "session is read-only|server is in hot standby mode|session is not read-only|not in hot standby",
        "no host is what target_session_attrs wants",
        "check the hosts, and whether one of them is the primary",
    ),
    (
        "too many clients|remaining connection slots|too many connections",
        "it has no free connection",
        "raise its limit",
    ),
    ("starting up|shutting down|in recovery mode", "it starts or stops", "wait"),
    ("unsupported frontend protocol|protocol version", "its version is not supported", "use PostgreSQL 13 or later"),
    ("invalid .* connection option|invalid connection option", "the connection string is wrong", "correct it"),
)
_EACH_HOST = re.compile(r"^- host: '?(.*?)'?, port: '?(.*?)'?, hostaddr: .*?: (.*)$", re.MULTILINE)


def explained(error: psycopg.Error) -> str:
    """Return one line of why PostgreSQL did not do what it was asked for; of a connection also what to check."""
    text = str(error).strip()
    if error.sqlstate is not None or not isinstance(error, psycopg.OperationalError):
        return " ".join(text.split())
    tried = [f"{host}:{port}: {_kind(said)}" for host, port, said in _EACH_HOST.findall(text)]
    said = text.split("\nMultiple connection attempts")[0].replace(
        "\n\tIs the server running", " Is the server running"
    )
    said = " ".join(said.split(" Is the server running")[0].split())
    others = f" (each host that was tried: {'; '.join(tried)})" if tried else ""
    for pattern, kind, remedy in _MATCHES:
        if re.search(pattern, said):
            return f"{kind}: {said}{others}: {remedy}, in {VARIABLE}"
    return f"{said}{others}"


def _kind(said: str) -> str:
    return next((kind for pattern, kind, _ in _MATCHES if re.search(pattern, said)), said)
