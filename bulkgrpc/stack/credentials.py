"""The credentials of a secure stack: authority, certificate, passwords and token key, made at the first start."""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bulkgrpc.stack.model import LOOPBACK, StackError

_VALID = timedelta(days=3650)
_TOKEN_VALID = timedelta(days=30)
_AUDIENCE = "bulkgrpc"
_SCOPES = "bulk.read bulk.write bulk.admin"
_NAMES = ("kafka", "redis")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Files and secrets in one directory, which only its owner can read. All are written by `ensure`."""

    directory: Path

    @property
    def authority(self) -> Path:
        """The certificate of the authority, in PEM: what clients trust."""
        return self.directory / "ca.pem"

    @property
    def certificate(self) -> Path:
        """The certificate of every server of the stack, for localhost and 127.0.0.1."""
        return self.directory / "server.pem"

    @property
    def key(self) -> Path:
        """Its key."""
        return self.directory / "server-key.pem"

    @property
    def both(self) -> Path:
        """Key and certificate in one file, as Kafka reads them."""
        return self.directory / "server-both.pem"

    @property
    def key_set(self) -> Path:
        """The JSON Web Key Set that the service checks tokens with."""
        return self.directory / "jwks.json"

    def password(self, name: str) -> str:
        """Return the password of a part's user: `kafka` or `redis`."""
        return str(json.loads((self.directory / "passwords.json").read_text())[name])

    def exist(self) -> bool:
        """Return whether they were made."""
        return self.directory.is_dir()

    def ensure(self) -> None:
        """Make them, unless they exist. Raises StackError if the packages for it are not installed."""
        if self.exist():
            return
        draft = Path(tempfile.mkdtemp(prefix="secure.", dir=self.directory.parent))
        try:
            _write(draft)
            draft.rename(self.directory)
        except ImportError as error:
            raise StackError(f"a secure stack needs {error.name}: pip install 'pyjwt[crypto]'") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def token(self, tenant: str) -> str:
        """Return a token of a tenant with all scopes, valid for 30 days from now."""
        import jwt  # noqa: PLC0415 - only a secure stack needs it

        key = (self.directory / "token-key.pem").read_text()
        claims = {
            "tenant": tenant,
            "scope": _SCOPES,
            "aud": _AUDIENCE,
            "exp": datetime.now(UTC) + _TOKEN_VALID,
        }
        return jwt.encode(claims, key, "ES256", headers={"kid": "stack"})


def _write(directory: Path) -> None:
    import jwt.algorithms  # noqa: PLC0415 - only a secure stack needs these
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    authority, server, token = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    signed = _certificate("bulkgrpc stack", authority, "bulkgrpc stack", authority, is_authority=True)
    certificate = _certificate("localhost", server, "bulkgrpc stack", authority, is_authority=False)
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(token.public_key()))
    files = {
        "ca.pem": signed,
        "server.pem": certificate,
        "server-key.pem": _private(server),
        "server-both.pem": _private(server) + certificate,
        "token-key.pem": _private(token),
        "jwks.json": json.dumps({"keys": [{**public, "kid": "stack", "use": "sig", "alg": "ES256"}]}).encode(),
        "passwords.json": json.dumps({name: secrets.token_urlsafe(24) for name in _NAMES}).encode(),
    }
    for name, content in files.items():
        descriptor = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)


def _private(key: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))


def _usage(*, is_authority: bool) -> Any:
    from cryptography import x509  # noqa: PLC0415

    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _certificate(subject: str, key: Any, issuer: str, issuer_key: Any, *, is_authority: bool) -> bytes:
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.x509.oid import NameOID  # noqa: PLC0415

    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + _VALID)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        # Python 3.13 and later verify strictly, and want these.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(_usage(is_authority=is_authority), critical=True)
    )
    if not is_authority:
        places = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(LOOPBACK))]
        builder = builder.add_extension(x509.SubjectAlternativeName(places), critical=False)
    return bytes(builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
