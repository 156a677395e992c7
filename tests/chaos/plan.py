"""All faults by name, and the plan of a storm: drawn from a seed, the same for the same seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.chaos.fault import Fault
from tests.chaos.faults_around import NETWORK_FAULTS, REDIS_FAULTS
from tests.chaos.faults_kafka import KAFKA_FAULTS
from tests.chaos.faults_postgres import POSTGRES_FAULTS
from tests.chaos.faults_process import PROCESS_FAULTS
from tests.chaos.faults_restore import RESTORE_FAULTS
from tests.chaos.faults_topic import TOPIC_REPLACED
from tests.chaos.faults_user import USER_FAULTS

FAULTS = {
    fault.name: fault
    for fault in (
        *PROCESS_FAULTS,
        *POSTGRES_FAULTS,
        *RESTORE_FAULTS,
        *KAFKA_FAULTS,
        *REDIS_FAULTS,
        *NETWORK_FAULTS,
    )
}
_DRAWN = {**FAULTS, TOPIC_REPLACED.name: TOPIC_REPLACED}
STORM_FAULTS = {**_DRAWN, **{fault.name: fault for faults in USER_FAULTS.values() for fault in faults}}
"""Those of users are tried one by one in tests/blast, the topic's replacement on a service of its own."""
QUIET = 0.25
"""The part of a storm's periods in which nothing happens."""
USERS = 0.5
"""The part of the other periods in which a user does something."""
PERIOD_S = (20.0, 30.0)
AT_ONCE_MAX = 3
USER, POSTGRES = "user", "postgres"
# These look for their own effect, or undo what others do; beside another fault neither is sure.
ALONE = frozenset(
    {
        "postgres: disk full",
        "postgres: deadlocks",
        "postgres: serialization failures",
        "postgres: no connection left",
        "kafka: group offsets deleted",
        "kafka: a stored batch vanishes",
        TOPIC_REPLACED.name,
        "worker: a zombie with a pending chunk",
        "worker: a zombie before its COMMIT",
        "worker: SIGSTOP past max.poll.interval",
    }
)
# A ledger that goes back is an operator's doing, and would hide that it went back by itself.
# Nor does a storm end all its jobs while a server is stopped, or lose the datasets that it registers meanwhile.
NOT_IN_STORMS = frozenset(
    {
        "kafka: partitions replayed from 0",
        "server: SIGSTOP past its leases, jobs sealed elsewhere",
        "postgres: the registry forgets dataset versions",
    }
)


@dataclass(frozen=True, slots=True)
class Period:
    """A number of seconds with these faults, all at the same time."""

    length_s: float
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        return f"{self.length_s:.0f} s: {'; '.join(fault.name for fault in self.faults) or 'quiet'}"


def draw(seed: int, seconds: float) -> list[Period]:
    """Draw the plan of a storm of so many seconds."""
    chance = random.Random(seed)
    periods: list[Period] = []
    while (left_s := seconds - sum(period.length_s for period in periods)) > 0:
        length_s = min(round(chance.uniform(*PERIOD_S), 1), left_s)
        periods.append(Period(length_s, () if chance.random() < QUIET else _some(chance)))
    return periods


def _some(chance: random.Random) -> tuple[Fault, ...]:
    """Draw faults of different parts. The part is drawn first, because the network and the users have many faults."""
    of_part: dict[str, list[Fault]] = {}
    users = chance.random() < USERS
    for fault in _DRAWN.values():
        # A table is repaired in a PostgreSQL that answers.
        if fault.name not in NOT_IN_STORMS and not (users and (fault.part == POSTGRES or fault.name in ALONE)):
            of_part.setdefault(fault.part, []).append(fault)
    if users:
        user = chance.choice(USER_FAULTS[chance.choice(sorted(USER_FAULTS))])
        parts = chance.sample(sorted(of_part), chance.randint(0, AT_ONCE_MAX - 1))
        # The user's first: it needs a server that answers.
        return (user, *(chance.choice(of_part[part]) for part in parts))
    parts = chance.sample(sorted(of_part), chance.randint(1, AT_ONCE_MAX))
    drawn = [chance.choice(of_part[part]) for part in parts]
    alone = [fault for fault in drawn if fault.name in ALONE]
    return (alone[0],) if alone else tuple(drawn)
