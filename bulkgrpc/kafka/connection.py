"""How every client connects to Kafka: its properties, and why Kafka does not answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from bulkgrpc.consume.ports import RecordLogError
from bulkgrpc.kafka.token_command import NoToken, token_of
from bulkgrpc.kafka_properties import VARIABLE, variable_of
from bulkgrpc.settings import StackSettings

T = TypeVar("T")

_NONE: Mapping[str, object] = MappingProxyType({})
# The broker's name, or how long it took: noise for a person.
_NOISE = re.compile(r"^\S+/\S+: | \(after \d+ms in state \w+.*\)$")


class KafkaUnavailable(RecordLogError):
    """Kafka does not answer, or not in time."""


class KafkaMisconfigured(KafkaUnavailable):
    """A property of librdkafka is wrong. A restart would not help."""


class Administrator:
    """A client for administrative requests. It never creates a topic by asking for it.

    Raises KafkaMisconfigured, and KafkaUnavailable without a token.
    """

    def __init__(self, settings: StackSettings) -> None:
        self._settings = settings
        self._errors = ConnectionErrors()
        fixed = {"allow.auto.create.topics": False, "error_cb": self._errors}
        self.client = _make(AdminClient, settings, fixed, _NONE)

    def unavailable(self, error: BaseException) -> KafkaUnavailable:
        """Return why a request failed: with what the connections reported, if they did."""
        said = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        reason = self._reason() or said or "it did not answer in time"
        return KafkaUnavailable(f"Kafka at {self._settings.kafka} does not answer: {reason}")

    def connections_failed(self) -> bool:
        """Return whether a connection reported an error until now."""
        return bool(self._reason())

    def _reason(self) -> str:
        # Errors of connections are handed over by polling.
        self.client.poll(0)
        return self._errors.reason(self._settings)


class ConnectionErrors:
    """Collects what a client's connections report: its `error_cb`."""

    def __init__(self) -> None:
        self._last: KafkaError | None = None
        self._all_down = False

    def __call__(self, error: KafkaError) -> None:
        """Take an error of librdkafka."""
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._all_down = True
        elif self._last is None or error.code() != KafkaError._TRANSPORT:
            # What follows a failed handshake says less than it.
            self._last = error

    def reason(self, settings: StackSettings) -> str:
        """Return what is wrong, and which settings to check; empty if nothing was reported."""
        if self._last is not None:
            return _explained(self._last, settings)
        if self._all_down:
            return (
                f"it closes connections of security.protocol {_protocol(settings)}: it may expect TLS or "
                f"authentication, {_check('security.protocol')}"
            )
        return ""


def _explained(error: KafkaError, settings: StackSettings) -> str:
    said = _NOISE.sub("", _NOISE.sub("", error.str()))
    code = error.code()
    if code == KafkaError._RESOLVE:
        return f"{said}: check {VARIABLE}, and the broker's advertised.listeners"
    if code == KafkaError._AUTHENTICATION:
        return f"authentication failed: {said}: {_check('sasl.mechanism', 'sasl.username', 'sasl.password')}"
    if code == KafkaError._SSL or "ssl" in said.lower():
        return f"TLS failed: {said}: {_check_tls(said.lower(), settings)}"
    if "refused" in said.lower():
        return f"the connection is refused: {said}: check {VARIABLE}, and whether the broker runs"
    return f"no connection: {said}: check {VARIABLE}, and {variable_of('security.protocol')}"


def _check_tls(said: str, settings: StackSettings) -> str:
    if "plaintext" in said or "closed by peer" in said:
        return f"{_check('security.protocol')}, it is {_protocol(settings)}"
    if "alert" in said:
        return f"the broker does not accept our certificate, {_check('ssl.certificate.location', 'ssl.key.location')}"
    return _check("ssl.ca.location")


def consumer(settings: StackSettings, fixed: Mapping[str, object], tuned: Mapping[str, object] = _NONE) -> Consumer:
    """Return a consumer. fixed: properties that no setting changes; tuned: ours, unless the settings have others.

    Raises KafkaMisconfigured, and KafkaUnavailable without a token.
    """
    return _make(Consumer, settings, fixed, tuned)


def producer(settings: StackSettings, fixed: Mapping[str, object], tuned: Mapping[str, object] = _NONE) -> Producer:
    """Return a producer, as `consumer` does."""
    return _make(Producer, settings, fixed, tuned)


def _make(
    make: Callable[[dict[str, Any]], T],
    settings: StackSettings,
    fixed: Mapping[str, object],
    tuned: Mapping[str, object],
) -> T:
    # Errors go to callbacks and exceptions: librdkafka's own lines on stderr are no JSON.
    properties: dict[str, Any] = {"log_level": 0, **tuned, **settings.kafka_properties, **fixed}
    if settings.kafka_token_command:
        properties["oauth_cb"] = _tokens(settings)
    try:
        return make({**properties, "bootstrap.servers": settings.kafka})
    except KafkaException as error:
        raise KafkaMisconfigured(_misconfigured(error.args[0].str())) from error


def _tokens(settings: StackSettings) -> Callable[[str], tuple[str, float]]:
    """Return the callback for tokens. The first one is there already: a client without one says nothing for 10 s."""
    command = settings.kafka_token_command
    try:
        first = [token_of(command)]
    except NoToken as error:
        reason = f"authentication failed: {error}: check {VARIABLE}_TOKEN_COMMAND"
        raise KafkaUnavailable(f"Kafka at {settings.kafka} does not answer: {reason}") from error
    return lambda _: first.pop() if first else token_of(command)


def _misconfigured(said: str) -> str:
    """Return what librdkafka says of a property, with the names that a user knows it by."""
    named = re.search(r'property[:]? "([\w.]+)"|^Failed to create \w+ ?\w*: ([a-z]+(?:\.[a-z]+)+)', said)
    if named is None:
        return f"Kafka's client cannot be configured: {said}"
    name = named.group(1) or named.group(2)
    return f"{variable_of(name)}, or {name} in the file of {VARIABLE}_CONFIG: {said}"


def _check(*names: str) -> str:
    return f"check {', '.join(map(variable_of, names))}"


def _protocol(settings: StackSettings) -> str:
    return settings.kafka_properties.get("security.protocol", "plaintext")
