from __future__ import annotations

import psycopg
import pytest

from bulkgrpc.postgres.connection import conninfo
from bulkgrpc.postgres.pooler import options_of, refuses_options


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ("", {}),
        ("-c a=1 -c b=2", {"a": "1", "b": "2"}),
        ("-ca=1 --b-c=2", {"a": "1", "b_c": "2"}),
        (r"-c a=x\ y\\z  -c b=", {"a": r"x y\z", "b": ""}),
        ("-c a=1 -c a=2", {"a": "2"}),
        ("-d 5 -c a=1=2", {"a": "1=2"}),
    ],
)
def test_the_options_of_a_connection_are_settings(options: str, settings: dict[str, str]) -> None:
    assert options_of(options) == settings


def test_our_own_options_are_understood() -> None:
    target = conninfo("host=a options='-c work_mem=1MB'", "x")
    found = options_of(str(psycopg.conninfo.conninfo_to_dict(target)["options"]))
    assert found["default_transaction_isolation"] == "read committed"
    assert found["work_mem"] == "1MB"


@pytest.mark.parametrize(
    ("message", "refused"),
    [
        ("FATAL:  unsupported startup parameter: options", True),
        ("FATAL:  unsupported startup parameter in options: statement_timeout", True),
        ('FATAL:  unrecognized configuration parameter "transaction_timeout"', False),
    ],
)
def test_a_pooler_is_noticed_by_what_it_refuses(message: str, refused: bool) -> None:
    assert refuses_options(psycopg.OperationalError(message)) is refused
