"""Properties of Kafka's client library: from a file and the environment, refused where the promises depend on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bulkgrpc.kafka_properties import WrongKafkaProperty, kafka_properties
from bulkgrpc.settings import StackSettings, WorkerSettings, load


def found(**environment: str) -> dict[str, str]:
    return kafka_properties(environment, StackSettings.model_fields)


def test_variables_are_properties() -> None:
    assert found(
        BULKGRPC_KAFKA="b:1",
        BULKGRPC_KAFKA_SASL_USERNAME="u",
        BULKGRPC_KAFKA_SECURITY_PROTOCOL="SASL_SSL",
        BULKGRPC_KAFKA_TOKEN_COMMAND="cat token",
        KAFKA_SASL_PASSWORD="other",
    ) == {"sasl.username": "u", "security.protocol": "SASL_SSL"}


def test_a_file_has_one_property_a_line_and_variables_win(tmp_path: Path) -> None:
    file = tmp_path / "client.properties"
    file.write_text("# ours\n\nsasl.username = file\nsasl.password=a=b \n! no\nclient.rack=r1\n")
    assert found(BULKGRPC_KAFKA_CONFIG=str(file), BULKGRPC_KAFKA_CLIENT_RACK="r2") == {
        "sasl.username": "file",
        "sasl.password": "a=b",
        "client.rack": "r2",
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a line\n", "line 1 of .* is not NAME=VALUE"),
        ("\n=b\n", "line 2 of .* is not NAME=VALUE"),
        ("acks=1\n", "line 1 of .*: acks: the service sets it"),
        ("bootstrap.servers=x\n", "set BULKGRPC_KAFKA instead"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_line(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "client.properties"
    file.write_text(text)
    with pytest.raises(WrongKafkaProperty, match=f"BULKGRPC_KAFKA_CONFIG: {reason}|{reason}"):
        found(BULKGRPC_KAFKA_CONFIG=str(file))


def test_a_file_that_is_missing_is_named() -> None:
    with pytest.raises(WrongKafkaProperty, match="BULKGRPC_KAFKA_CONFIG: /nowhere cannot be read"):
        found(BULKGRPC_KAFKA_CONFIG="/nowhere")


@pytest.mark.parametrize("name", ["ACKS", "ISOLATION_LEVEL", "ENABLE_AUTO_COMMIT", "GROUP_ID", "MESSAGE_TIMEOUT_MS"])
def test_a_property_that_the_promises_need_stops_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv(f"BULKGRPC_KAFKA_{name}", "x")
    with pytest.raises(SystemExit) as exited:
        load(WorkerSettings)
    assert exited.value.code == 2
    assert f"BULKGRPC_KAFKA_{name}: {name.lower().replace('_', '.')}: " in capsys.readouterr().err


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(load(StackSettings, kafka_properties={"sasl.password": "secret"}))
