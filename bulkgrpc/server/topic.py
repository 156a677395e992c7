"""The records topic when a server starts: created only if nothing says that it existed."""

from __future__ import annotations

import asyncio

from bulkgrpc.ingest.ports import PostgresUnavailable
from bulkgrpc.kafka.topics import KafkaUnavailable, TopicMissing, ensure_topic
from bulkgrpc.limits import SERVER_STORES_S
from bulkgrpc.postgres.topics import may_create
from bulkgrpc.server.cannot_serve import CannotServe
from bulkgrpc.settings import ServerSettings

RETRY_S = 0.2


async def open_topic(settings: ServerSettings) -> int:
    """Return the number of the topic's partitions, once each has a leader. Raises CannotServe.

    | the topic | the ledger          | what happens                                          |
    |-----------|---------------------|-------------------------------------------------------|
    | is there  | any, or unavailable | it is used; `ingest.topic_guard` compares the IDs     |
    | missing   | knows of none       | it is created                                         |
    | missing   | knows of one        | the server does not start: acknowledged records may be |
    |           |                     | lost, which an operator has to decide about           |
    | missing   | unavailable         | the server does not start: a new topic would hide it  |
    """
    give_up_s = asyncio.get_running_loop().time() + SERVER_STORES_S
    while True:
        try:
            return await asyncio.to_thread(
                ensure_topic, settings, lambda: may_create(settings.postgres, settings.topic)
            )
        except TopicMissing as error:
            reason = str(error)
        except KafkaUnavailable as error:
            reason = f"{error}: check BULKGRPC_KAFKA"
        except PostgresUnavailable as error:
            reason = (
                f"Kafka at {settings.kafka} has no topic {settings.topic}, and PostgreSQL, which knows whether there "
                f"was one, does not answer ({error}): check BULKGRPC_POSTGRES"
            )
        if asyncio.get_running_loop().time() > give_up_s:
            raise CannotServe(reason)
        # Brokers take a moment to report a topic that was just created, or all of them after their start.
        await asyncio.sleep(RETRY_S)
