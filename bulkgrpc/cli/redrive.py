"""What `dlq redrive` does with a message of a job: it restores the job, in order."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from bulkgrpc.cli import console
from bulkgrpc.consume.redrive import Redrive
from bulkgrpc.kafka.dead_letters import DeadLetters
from bulkgrpc.kafka.records_topic import RecordsTopic
from bulkgrpc.model import JobKey, JobState
from bulkgrpc.postgres import recovery
from bulkgrpc.postgres.connection import connect
from bulkgrpc.settings import StackSettings


@dataclass(frozen=True, slots=True)
class RedrivenJob:
    """What was sent again of a job. state: before. missing: by lane, the sequence from which on nothing was found."""

    job: JobKey
    state: JobState
    messages: int
    missing: dict[int, int]
    settled: Sequence[int]

    @property
    def complete(self) -> bool:
        """Whether the job continues by itself: an open one waits for its client."""
        return self.state is JobState.OPEN or not self.missing


def redrive_job(settings: StackSettings, dead_letters: DeadLetters, job: JobKey) -> RedrivenJob:
    """Send what a job lacks to the records topic again: from its dead letters, and from the topic itself.

    In the order of the log, from the first dead letter of the job on: batches that were passed over behind it, and the
    seal, are sent too. Workers know by the lanes what they applied, so repeating it changes nothing. Raises
    CommandFailed, KafkaUnavailable, PostgresError.
    """
    with connect(settings.postgres, "bulkgrpc-redrive") as connection:
        position = recovery.job_position(connection, job)
    if position is None:
        raise console.CommandFailed(
            f"the ledger has no {job.name}: it was deleted, or its retention is over, so what was applied of it is not "
            "known any more; submit its records again, and discard its dead letters with `bulkgrpc dlq discard`"
        )
    if position.state.ended:
        raise console.CommandFailed(
            f"{job.name} has ended as {position.state.name}, which does not change: its records would expire; submit "
            "them under another idempotency key, and discard its dead letters with `bulkgrpc dlq discard`"
        )
    letters = [
        (letter, settled)
        for letter, settled in dead_letters.all()
        if letter.source_topic == settings.topic and letter.message is not None and letter.message.spec.key == job
    ]
    redrive, sent = Redrive(dict(position.lanes)), 0
    with RecordsTopic(settings) as topic:
        first = {letter.source_partition: letter.source_offset for letter, _ in reversed(letters)}
        for partition in sorted(first) or sorted(set(position.partitions)):
            # Not the dead letter alone: a topic that was created again has other offsets.
            created = topic.first_from(partition, position.create_time)
            from_offset = min(created, first.get(partition, created))
            ours = [letter.fetched() for letter, _ in letters if letter.source_partition == partition]
            # Kafka may have deleted the originals. What both have is sent once.
            for message in itertools.chain(ours, topic.read(partition, from_offset, job)):
                if message.message is not None and redrive.takes(message.message):
                    topic.send(partition, message)
                    sent += 1
        topic.flush()
    settled = []
    for letter, was_settled in letters:
        if not was_settled and letter.message is not None and redrive.has(letter.message):
            dead_letters.settle_redriven(letter)
            settled.append(letter.offset)
    return RedrivenJob(job, position.state, sent, dict(redrive.missing), settled)
