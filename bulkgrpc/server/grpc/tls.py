"""TLS of the server: certificates that are read again when they change, client certificates, TLS 1.3 only.

Two layers refuse TLS 1.2, because gRPC has no setting for it. `bulkgrpc/server/process.py` leaves it a cipher suite for
RSA keys only: with an ECDSA key the handshake fails. With an RSA key it succeeds, and each call is refused
(`TlsInterceptor`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import grpc
import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from bulkgrpc.settings import ServerSettings

_log = structlog.get_logger()
LOOK_S: Final = 1.0
"""How often the files are looked at, at most, by handshakes."""


class WrongTls(ValueError):
    """Certificate, key or authority cannot be used. str() names the variables."""


def credentials(settings: ServerSettings, clock: Callable[[], float] = time.monotonic) -> grpc.ServerCredentials:
    """Return credentials from the files of the settings, which are read again when they change.

    Raises WrongTls if they cannot be used now. Later, files that cannot be used change nothing, and are logged.
    """
    files = _Files(settings, clock)
    # The stubs do not know that None keeps the configuration.
    return grpc.dynamic_ssl_server_credentials(files.first, files.changed, bool(settings.tls_client_ca))  # type: ignore[arg-type]


class _Files:
    """The certificate, its key and the authority of clients. first: as they were when the server started."""

    def __init__(self, settings: ServerSettings, clock: Callable[[], float]) -> None:
        self._settings, self._clock = settings, clock
        self._looked_at_s = clock()
        self._seen = self._stamps()
        self.first = self._read()

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the new configuration for a handshake; None if it is as before. Called by gRPC, on its threads."""
        if self._clock() - self._looked_at_s < LOOK_S:
            return None
        self._looked_at_s = self._clock()
        seen = self._stamps()
        if seen == self._seen:
            return None
        try:
            found = self._read()
        except WrongTls as error:
            # Certificate and key are not replaced in one moment: the next look may find both.
            _log.error("tls_not_reloaded", error=str(error))
            return None
        self._seen = seen
        _log.info("tls_reloaded", certificate=self._settings.tls_certificate)
        return found

    def _stamps(self) -> tuple[object, ...]:
        settings = self._settings
        return tuple(map(_stamp, (settings.tls_certificate, settings.tls_key, settings.tls_client_ca)))

    def _read(self) -> grpc.ServerCertificateConfiguration:
        settings = self._settings
        try:
            certificate, key = Path(settings.tls_certificate).read_bytes(), Path(settings.tls_key).read_bytes()
        except OSError as error:
            raise WrongTls(f"BULKGRPC_TLS_CERTIFICATE and BULKGRPC_TLS_KEY: {error}") from error
        _check_pair(certificate, key)
        return grpc.ssl_server_certificate_configuration([(key, certificate)], self._authority())

    def _authority(self) -> bytes | None:
        if not self._settings.tls_client_ca:
            return None
        try:
            found = Path(self._settings.tls_client_ca).read_bytes()
            x509.load_pem_x509_certificates(found)
        except (OSError, ValueError) as error:
            raise WrongTls(f"BULKGRPC_TLS_CLIENT_CA: {error}") from error
        return found


def _stamp(path: str) -> object:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _check_pair(certificate: bytes, key: bytes) -> None:
    """Check that a key is that of a certificate: gRPC would only fail each handshake. Raises WrongTls."""
    try:
        first = x509.load_pem_x509_certificates(certificate)[0]
        private = load_pem_private_key(key, None)
    except (ValueError, TypeError, IndexError, UnsupportedAlgorithm) as error:
        raise WrongTls(f"BULKGRPC_TLS_CERTIFICATE and BULKGRPC_TLS_KEY: {error}") from error
    if private.public_key() != first.public_key():
        raise WrongTls("BULKGRPC_TLS_CERTIFICATE and BULKGRPC_TLS_KEY: the key is not that of the certificate")
