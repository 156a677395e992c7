"""What is wrong with a topic's settings, and the token of a command: the pure parts of connecting to Kafka."""

from __future__ import annotations

import sys
import time

import jwt
import pytest

from bulkgrpc.kafka.token_command import UNKNOWN_LIFE_S, NoToken, token_of
from bulkgrpc.kafka.topic_config import problems_of
from bulkgrpc.limits import BATCH_BYTES_MAX

FIT = {
    "cleanup.policy": "delete",
    "max.message.bytes": "4194304",
    "min.insync.replicas": "2",
    "unclean.leader.election.enable": "false",
    "retention.ms": "604800000",
    "retention.bytes": "-1",
}


def test_a_fit_topic_has_no_problem() -> None:
    assert problems_of("t", FIT, 3, BATCH_BYTES_MAX) == []
    assert problems_of("t", {**FIT, "min.insync.replicas": "1"}, 1, BATCH_BYTES_MAX) == []
    assert problems_of("t", {**FIT, "retention.ms": "-1"}, 3, BATCH_BYTES_MAX) == []


@pytest.mark.parametrize(
    ("name", "value", "says", "refused"),
    [
        ("cleanup.policy", "compact", "cleanup.policy=delete", True),
        ("cleanup.policy", "compact,delete", "delete acknowledged batches", True),
        ("max.message.bytes", "1048588", "BULKGRPC_BATCH_BYTES_MAX to 983436 or less", True),
        ("max.message.bytes", "1000", "max.message.bytes=1113728", True),
        ("min.insync.replicas", "4", "refuses every batch", True),
        ("min.insync.replicas", "1", "the loss of one broker", False),
        ("unclean.leader.election.enable", "true", "lose batches", False),
        ("retention.ms", "3600000", "could not write for so long", False),
        ("retention.bytes", "1000000", "not written yet", False),
    ],
)
def test_a_setting_that_harms_is_named_with_the_way_out(name: str, value: str, says: str, refused: bool) -> None:
    (found,) = problems_of("t", {**FIT, name: value}, 3, BATCH_BYTES_MAX)
    assert (found.name, found.refused) == (name, refused)
    assert f"{name}={value} of topic t" in found.reason
    assert says in found.reason


def command(code: str) -> str:
    return f"{sys.executable} -c '{code}'"


def test_a_token_is_valid_until_its_expiry() -> None:
    token = jwt.encode({"sub": "a", "exp": 2_000_000_000}, "k" * 32, "HS256")
    assert token_of(command(f'print("{token}")')) == (token, 2_000_000_000)


def test_a_token_of_unknown_expiry_is_asked_for_again_soon() -> None:
    token, expiry = token_of(command('print("opaque")'))
    assert token == "opaque"
    assert expiry == pytest.approx(time.time() + UNKNOWN_LIFE_S, abs=30)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ('import sys; sys.exit("no login")', "ended with 1: no login"),
        ("pass", "printed nothing"),
    ],
)
def test_a_command_that_fails_says_why(code: str, reason: str) -> None:
    with pytest.raises(NoToken, match=reason):
        token_of(command(code))


def test_a_command_that_is_not_there_is_named() -> None:
    with pytest.raises(NoToken, match="no-such-program"):
        token_of("no-such-program --token")
