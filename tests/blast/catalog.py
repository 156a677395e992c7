"""All faults, and which of them run together on which datasets."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bulkgrpc.datasets.definition import ConflictPolicy
from bulkgrpc.kafka.partition import partition_of
from tests.blast.fault import Effect, Fault
from tests.blast.faults_batch import BATCH_FAULTS
from tests.blast.faults_database import DATABASE_FAULTS
from tests.blast.faults_ddl import CONSTRAINT_FAULTS, DEFINITION_FAULTS, TYPE_FAULTS
from tests.blast.faults_kinds import KIND_FAULTS
from tests.blast.faults_trigger import TRIGGER_FAULTS
from tests.blast.records import Kind, Message

FAULTS = {
    fault.name: fault
    for fault in (
        *DEFINITION_FAULTS,
        *TYPE_FAULTS,
        *CONSTRAINT_FAULTS,
        *TRIGGER_FAULTS,
        *BATCH_FAULTS,
        *DATABASE_FAULTS,
    )
}
PARTITIONS = 16
"""Of the records topic: both workers own several."""
PAIRS = PARTITIONS // 2
_NAME_CHARS_MAX = 36


@dataclass(frozen=True, slots=True)
class Case:
    """A fault on a dataset of a kind, with a conflict policy, written by atomic jobs or not."""

    fault: Fault
    policy: ConflictPolicy
    atomic: bool = False
    kind: Kind = "created"

    def __str__(self) -> str:
        kind = f", {self.kind}" if self.kind in ("deletes", "existing") else ""
        return f"{self.fault.name} [{self.policy}{kind}{', atomic' if self.atomic else ''}]"

    @property
    def message(self) -> Message:
        """The message of its records."""
        return {"deletes": "Change", "existing": "Bound"}.get(self.kind, self.fault.message)  # type: ignore[return-value]

    @property
    def effect(self) -> Effect:
        """What the fault does to this dataset."""
        return self.fault.effect_of(self.policy)

    def table(self, run: str) -> str:
        """Return the name of the dataset and its table in a run."""
        name = re.sub(r"[^a-z0-9]+", "_", self.fault.name.lower()).strip("_")[:_NAME_CHARS_MAX]
        return f"{run}_{name}_{zlib.crc32(str(self).encode()):08x}"


def every_case(faults: Iterable[Fault]) -> list[Case]:
    """Return the faults with every policy, atomic or not."""
    return [Case(fault, policy, atomic) for fault in faults for policy in fault.policies for atomic in (False, True)]


def short_cases(faults: Iterable[Fault], *, slow: bool = False) -> list[Case]:
    """Return each fault once, slow ones only if `slow`; the policies rotate, and atomic jobs write every fourth case.

    Only root can fill a disk: for other users that fault is omitted, and `left_out` names it.
    """
    chosen = [fault for fault in faults if slow >= fault.slow and (fault.around is None or os.geteuid() == 0)]
    return [
        Case(fault, fault.policies[number % len(fault.policies)], number % 4 == 3 and fault.poison is None)
        for number, fault in enumerate(chosen)
    ]


def policies_of(kind: Kind, fault: Fault) -> tuple[ConflictPolicy, ...]:
    """Return the policies with which a dataset of a kind can have a fault."""
    fixed: dict[Kind, tuple[ConflictPolicy, ...]] = {"append": ("append",), "deletes": ("update",)}
    return fixed.get(kind, fault.policies)


def kind_cases(*, every: bool = False) -> list[Case]:
    """Return the faults of datasets that are not plain: once, as `short_cases`, or with every policy, atomic or not."""
    found = []
    for kind, faults in KIND_FAULTS.items():
        for number, fault in enumerate(faults):
            policies = policies_of(kind, fault)
            if every:
                found += [Case(fault, policy, atomic, kind) for policy in policies for atomic in (False, True)]
            else:
                # An atomic job waits for locks for up to a minute before a log names its table.
                atomic = number % 4 == 3 and not fault.holds
                found.append(Case(fault, policies[number % len(policies)], atomic, kind))
    return found


def left_out(faults: Iterable[Fault]) -> list[str]:
    """Return the faults that this user cannot apply."""
    return [fault.name for fault in faults if fault.around is not None and os.geteuid() != 0]


def waves(cases: Sequence[Case], at_once: int = PAIRS) -> Iterator[list[Case]]:
    """Yield the cases that run together: `at_once` of them; a fault of the whole database alone, with every policy."""
    of_tables = [case for case in cases if not case.fault.whole]
    for start in range(0, len(of_tables), at_once):
        yield of_tables[start : start + at_once]
    whole: dict[str, list[Case]] = {}
    for case in cases:
        if case.fault.whole:
            whole.setdefault(case.fault.name, []).append(case)
    yield from whole.values()


def tenant_on(partition: int, prefix: str) -> str:
    """Return a tenant whose batches go to a partition."""
    return next(who for n in range(100_000) if partition_of(who := f"{prefix}-{n}", PARTITIONS) == partition)


def tenants_of(number: int, run: str) -> tuple[str, str]:
    """Return the two tenants of a victim: on partitions of both workers, whichever way the group assigns them."""
    first = number % PAIRS
    # The partner differs in parity and in the half of the topic: of ranges and of turns alike, another worker's.
    return tenant_on(first, f"{run}v{number}a"), tenant_on(PARTITIONS - 1 - first, f"{run}v{number}b")
