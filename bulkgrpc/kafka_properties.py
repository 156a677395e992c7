"""The properties of Kafka's client library, librdkafka, that a user sets: in a file, and in the environment."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

VARIABLE: Final = "BULKGRPC_KAFKA"
_ITS_PROMISES: Final = "the service sets it, because its promises depend on it: remove it"
_OURS: Final = {
    "bootstrap.servers": f"set {VARIABLE} instead",
    "metadata.broker.list": f"set {VARIABLE} instead",
    "group.id": "set BULKGRPC_GROUP instead",
    "group.protocol": "set BULKGRPC_GROUP_PROTOCOL instead",
    **dict.fromkeys(
        (
            "acks",
            "allow.auto.create.topics",
            "auto.commit.enable",
            "auto.offset.reset",
            "delivery.timeout.ms",
            "enable.auto.commit",
            "enable.auto.offset.store",
            "enable.gapless.guarantee",
            "enable.idempotence",
            "enable.partition.eof",
            "isolation.level",
            "max.poll.interval.ms",
            "message.max.bytes",
            "message.timeout.ms",
            "partition.assignment.strategy",
            "request.required.acks",
            "transactional.id",
        ),
        _ITS_PROMISES,
    ),
}
"""Properties of librdkafka that the settings may not have, and what to do instead."""


class WrongKafkaProperty(ValueError):
    """A property of librdkafka is where it must not be, or a line of the file cannot be read."""

    def __init__(self, variable: str, reason: str) -> None:
        super().__init__(f"{variable}: {reason}")


def kafka_properties(environment: Mapping[str, str], settings: Collection[str]) -> dict[str, str]:
    """Return the properties of librdkafka in the file of BULKGRPC_KAFKA_CONFIG and in BULKGRPC_KAFKA_…, which win.

    BULKGRPC_KAFKA_SASL_USERNAME is `sasl.username`. settings: names of settings; their variables are no properties.
    Raises WrongKafkaProperty.
    """
    file, found = f"{VARIABLE}_CONFIG", dict[str, str]()
    if path := environment.get(file, ""):
        found |= _in_file(file, path)
    for variable, value in environment.items():
        name = variable.removeprefix(f"{VARIABLE}_").lower()
        if name != variable.lower() and f"kafka_{name}" not in settings:
            name = name.replace("_", ".")
            _check(variable, name)
            found[name] = value
    return found


def variable_of(name: str) -> str:
    """Return the variable of a property."""
    return f"{VARIABLE}_{name.replace('.', '_').upper()}"


def _in_file(variable: str, path: str) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WrongKafkaProperty(variable, f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith(("#", "!")):
            continue
        name, separator, value = line.partition("=")
        if not separator or not name.strip():
            raise WrongKafkaProperty(variable, f"line {number} of {path} is not NAME=VALUE")
        _check(f"{variable}: line {number} of {path}", name.strip())
        found[name.strip()] = value.strip()
    return found


def _check(where: str, name: str) -> None:
    if name in _OURS:
        raise WrongKafkaProperty(where, f"{name}: {_OURS[name]}")
