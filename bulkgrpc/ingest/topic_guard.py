"""Refuses batches while the records topic is not the one that the ledger knows: workers would not apply them.

| the topic                                              | batches, seals and new jobs                  |
|--------------------------------------------------------|----------------------------------------------|
| has the ID that the ledger has, or the ledger has none | accepted                                     |
| has another ID                                         | refused (TOPIC_REPLACED)                     |
| is missing                                             | refused (TOPIC_MISSING)                      |
| cannot be compared: a store is unavailable             | as before; accepted if it was never compared |

What is acknowledged between the moment at which the topic is replaced and the next look is in the new topic. Once an
operator adopts that topic, it is applied, or its job fails. One task of the process looks, so a stream costs no query.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Final, NoReturn

import structlog

from bulkgrpc.errors import Reason, Unavailable
from bulkgrpc.ingest.ports import PostgresUnavailable, RecordLogUnavailable, TopicIdentity, TopicRecord

_log = structlog.get_logger()
LOOK_S: Final = 3.0
MISSING_LOOKS: Final = 2
"""Looks in a row after which a topic is taken for missing: while brokers start, one may not know it yet."""
RETRY_AFTER_S: Final = 10.0
"""An operator has to act."""


class TopicGuard:
    """Whether batches are accepted. Belongs to one event loop; one task calls `run`."""

    def __init__(self, topic: str, log: TopicIdentity, record: TopicRecord) -> None:
        self._topic, self._log, self._record = topic, log, record
        self._known: uuid.UUID | None = None
        self._missing = 0
        self._refusal: tuple[Reason, str] | None = None

    async def run(self) -> NoReturn:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except Exception as error:  # noqa: BLE001 — without this task batches for another topic would be accepted
                _log.exception("topic_not_checked", error=str(error))

    async def look(self) -> None:
        """Compare the topic with the ledger, which records its ID if it has none."""
        try:
            found = await self._log.topic_id()
        except RecordLogUnavailable:
            return
        self._missing = self._missing + 1 if found is None else 0
        if found is None:
            if self._missing >= MISSING_LOOKS:
                self._refuse(Reason.TOPIC_MISSING, f"Kafka has no topic {self._topic}")
            return
        if found != self._known:
            try:
                self._known = await self._record.recorded(found)
            except PostgresUnavailable:
                # A topic that was another one before is refused; of one that was never compared nothing is known.
                if self._known is None:
                    return
        if found == self._known:
            self._accept()
        else:
            self._refuse(
                Reason.TOPIC_REPLACED,
                f"topic {self._topic} has the ID {found}, and the ledger knows the ID {self._known}: it was created "
                "again, or is another cluster's",
            )

    def refusal(self) -> Unavailable | None:
        """Return the refusal of a batch, a seal or a new job, None if they are accepted."""
        if self._refusal is None:
            return None
        reason, why = self._refusal
        return Unavailable(
            reason,
            f"{why}; nothing is accepted until an operator decides (`bulkgrpc ledger adopt-topic`): retry later",
            retry_after_s=RETRY_AFTER_S,
            topic=self._topic,
        )

    def check(self) -> None:
        """Raise Unavailable (TOPIC_REPLACED, TOPIC_MISSING) if batches and seals are refused."""
        refusal = self.refusal()
        if refusal is not None:
            raise refusal

    def _refuse(self, reason: Reason, why: str) -> None:
        if self._refusal != (reason, why):
            _log.error("topic_refused", topic=self._topic, reason=why)
        self._refusal = (reason, why)

    def _accept(self) -> None:
        if self._refusal is not None:
            _log.info("topic_available", topic=self._topic)
        self._refusal = None
