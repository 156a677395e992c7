"""The certificates of a secure stack are accepted by clients that verify strictly, as Python 3.13 does by default."""

from __future__ import annotations

import ssl
from pathlib import Path

from bulkgrpc.stack import credentials


def test_a_strict_client_accepts_the_servers_certificate(tmp_path: Path) -> None:
    credentials._write(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "server.pem", tmp_path / "server-key.pem")
    client = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for end in ends * 3:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert ends[0].getpeercert()["subject"] == ((("commonName", "localhost"),),)  # type: ignore[index]
