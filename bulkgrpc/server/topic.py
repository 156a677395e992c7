"""The records topic when a server starts: created only if nothing says that it existed."""

from __future__ import annotations

import asyncio

import structlog

from bulkgrpc.ingest.ports import PostgresUnavailable
from bulkgrpc.kafka import topic_config
from bulkgrpc.kafka.connection import KafkaMisconfigured, KafkaUnavailable
from bulkgrpc.kafka.topics import NoRight, TopicMissing, ensure_topic
from bulkgrpc.limits import SERVER_STORES_S
from bulkgrpc.postgres.topics import may_create
from bulkgrpc.server.cannot_serve import WRONG_SETTINGS, CannotServe
from bulkgrpc.settings import ServerSettings

RETRY_S = 0.2

_log = structlog.get_logger()


async def open_topic(settings: ServerSettings) -> int:
    """Return the number of the topic's partitions, once each has a leader, if its configuration is fit.

    Raises CannotServe.

    | the topic | the ledger          | what happens                                          |
    |-----------|---------------------|-------------------------------------------------------|
    | is there  | any, or unavailable | it is used; `ingest.topic_guard` compares the IDs     |
    | missing   | knows of none       | it is created                                         |
    | missing   | knows of one        | the server does not start: acknowledged records may be |
    |           |                     | lost, which an operator has to decide about           |
    | missing   | unavailable         | the server does not start: a new topic would hide it  |
    """
    reason = ""
    give_up_s = asyncio.get_running_loop().time() + SERVER_STORES_S
    while True:
        try:
            partitions = await asyncio.to_thread(
                ensure_topic, settings, lambda: may_create(settings.postgres, settings.topic)
            )
            await asyncio.to_thread(_check, settings)
            return partitions
        except TopicMissing as error:
            reason = str(error)
        except (KafkaMisconfigured, NoRight) as error:
            raise CannotServe(str(error), WRONG_SETTINGS) from error
        except KafkaUnavailable as error:
            if str(error) != reason:
                _log.warning("kafka_unavailable_at_start", error=str(error))
            reason = str(error)
        except PostgresUnavailable as error:
            reason = (
                f"Kafka at {settings.kafka} has no topic {settings.topic}, and PostgreSQL, which knows whether there "
                f"was one, does not answer ({error}): check BULKGRPC_POSTGRES"
            )
        if asyncio.get_running_loop().time() > give_up_s:
            raise CannotServe(reason)
        # Brokers take a moment to report a topic that was just created, or all of them after their start.
        await asyncio.sleep(RETRY_S)


def _check(settings: ServerSettings) -> None:
    """Refuse a topic that loses or refuses batches. Raises CannotServe, KafkaUnavailable."""
    problems = topic_config.problems(settings, settings.batch_bytes_max)
    if problems is None:
        _log.info("topic_settings_unknown", topic=settings.topic)
        return
    refused = [problem.reason for problem in problems if problem.refused]
    if refused:
        raise CannotServe("; ".join(refused), WRONG_SETTINGS)
    for problem in problems:
        _log.warning("topic_setting", topic=settings.topic, setting=problem.name, reason=problem.reason)
