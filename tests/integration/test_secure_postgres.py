"""Connection strings as libpq takes them: TLS that is verified, several hosts; and what an error says."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from bulkgrpc.consume.ports import StoreUnavailable
from bulkgrpc.ingest.ports import PostgresUnavailable
from bulkgrpc.postgres import schema
from bulkgrpc.postgres.connection import connect
from bulkgrpc.postgres.deadlines import make_pool
from bulkgrpc.postgres.worker_ports import check_schema
from bulkgrpc.stack import Addresses
from bulkgrpc.stack.ports import choose_free
from tests.conftest import new_data_dir
from tests.support.certificates import Authority
from tests.support.secure_postgres import SecurePostgres, needs_debian_postgres, secure_postgres

USES_TLS = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"


@pytest.fixture(scope="module")
def secure() -> Iterator[SecurePostgres]:
    directory = new_data_dir()
    with secure_postgres(directory) as running:
        yield running
    shutil.rmtree(directory)


def verified(secure: SecurePostgres, **more: str) -> str:
    return make_conninfo(secure.url, sslmode="verify-full", sslrootcert=str(secure.authority.file), **more)


@needs_debian_postgres
async def test_the_certificate_of_the_server_is_verified(secure: SecurePostgres) -> None:
    schema.migrate(verified(secure))
    check_schema(verified(secure))
    with connect(verified(secure), "tests") as connection:
        assert connection.execute(USES_TLS).fetchone() == (True,)
    async with make_pool(verified(secure)) as pool, pool.connection() as pooled:
        assert await (await pooled.execute(USES_TLS)).fetchone() == (True,)


@needs_debian_postgres
@pytest.mark.parametrize("wrong", ["authority", "host name", "no authority"])
def test_a_certificate_that_does_not_fit_is_said(secure: SecurePostgres, wrong: str) -> None:
    target = {
        "authority": make_conninfo(
            verified(secure), sslrootcert=str(Authority(secure.authority.file.parent, "other").file)
        ),
        # It is signed for 127.0.0.1 and localhost.
        "host name": verified(secure, host="db.example.com", hostaddr="127.0.0.1"),
        "no authority": make_conninfo(secure.url, sslmode="verify-full", sslrootcert="/nowhere/ca.pem"),
    }[wrong]
    with pytest.raises(PostgresUnavailable, match=r"TLS failed: .*check sslrootcert.*BULKGRPC_POSTGRES"):
        schema.check_server(target)


@needs_debian_postgres
def test_the_primary_of_several_hosts_is_used(secure: SecurePostgres, addresses: Addresses) -> None:
    """A dead host, then one that is read-only as a standby is, then the primary: all of them have the same login."""
    primary, standby = conninfo_to_dict(addresses.postgres), conninfo_to_dict(secure.url)
    with psycopg.connect(secure.url, autocommit=True) as admin:
        admin.execute(f"ALTER ROLE {primary['user']} PASSWORD '{primary['password']}'".encode())
        admin.execute("ALTER DATABASE bulkgrpc SET default_transaction_read_only = on")
    dead = choose_free()
    hosts = make_conninfo(
        addresses.postgres,
        host="127.0.0.1,127.0.0.1,127.0.0.1",
        port=f"{dead},{standby['port']},{primary['port']}",
        target_session_attrs="read-write",
    )
    try:
        with connect(hosts, "tests") as connection:
            assert connection.info.port == int(str(primary["port"]))
            assert connection.execute("SHOW transaction_read_only").fetchone() == ("off",)
        none = make_conninfo(hosts, host="127.0.0.1,127.0.0.1", port=f"{dead},{standby['port']}")
        with pytest.raises(
            StoreUnavailable, match=rf"target_session_attrs.*127\.0\.0\.1:{dead}: the connection is ref"
        ):
            check_schema(none)
    finally:
        with psycopg.connect(addresses.postgres, port=standby["port"], autocommit=True) as admin:
            admin.execute("SET default_transaction_read_only = off; ")
            admin.execute("ALTER DATABASE bulkgrpc RESET default_transaction_read_only")
            admin.execute(f"ALTER ROLE {standby['user']} PASSWORD '{standby['password']}'".encode())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"host": "nowhere.invalid"}, "the host name is not known: .*nowhere.invalid.*BULKGRPC_POSTGRES"),
        ({"port": "1"}, "the connection is refused: .*port 1 .*check host and port"),
        ({"password": "wrong"}, "authentication failed: .*check user and password"),
        ({"dbname": "nope"}, 'there is no such database: .*"nope"'),
        ({"sslmode": "require"}, "TLS failed: server|TLS failed: .*does not support SSL.*check sslmode"),
        ({"target_session_attrs": "read-only"}, "no host is what target_session_attrs wants"),
    ],
)
def test_what_is_wrong_with_a_connection_is_said(addresses: Addresses, change: dict[str, str], says: str) -> None:
    target = make_conninfo(addresses.postgres, **change)
    with pytest.raises(StoreUnavailable, match=says):
        check_schema(target)
    with pytest.raises(PostgresUnavailable, match=says):
        schema.check_server(target)
