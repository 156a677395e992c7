from __future__ import annotations

import pytest

from bulkgrpc.redis.connection import sentinels_of


def test_a_url_of_sentinels_names_hosts_service_and_what_belongs_to_whom() -> None:
    found = sentinels_of(
        "rediss+sentinel://u:p%40@a:1,b/main/3?ssl_ca_certs=/ca.pem&sentinel_username=s&sentinel_password=q"
    )
    assert found is not None
    assert (list(found.hosts), found.service) == ([("a", 1), ("b", 26379)], "main")
    assert found.of_server == {
        "username": "u",
        "password": "p@",
        "db": 3,
        "ssl": True,
        "ssl_ca_certs": "/ca.pem",
    }
    assert found.of_sentinels == {"ssl": True, "ssl_ca_certs": "/ca.pem", "username": "s", "password": "q"}


def test_without_tls_or_a_login_there_are_no_options() -> None:
    found = sentinels_of("redis+sentinel://a:1/main")
    assert found is not None
    assert (found.of_server, found.of_sentinels) == ({}, {"username": None, "password": None})


def test_other_urls_are_of_one_server() -> None:
    assert sentinels_of("redis://a:1/0") is None


@pytest.mark.parametrize("url", ["redis+sentinel://a:1", "redis+sentinel:///main", "redis+sentinel://a:x/main"])
def test_a_url_without_a_service_or_hosts_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"redis\+sentinel://HOST|invalid literal"):
        sentinels_of(url)
