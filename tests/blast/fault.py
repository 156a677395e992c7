"""A fault: what a DBA, a tenant or an operator does, as data."""

from __future__ import annotations

import enum
import string
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from bulkgrpc.datasets.definition import ConflictPolicy
from tests.blast.records import Message
from tests.support.role import PASSWORD, ROLE

POLICIES: tuple[ConflictPolicy, ...] = ("ignore", "update", "reject")


class Effect(enum.Enum):
    """What a fault does to the dataset that it hits. No effect ever reaches another dataset, or ends a process."""

    BLOCKED = "nothing is written until the repair, then everything is; the table is named meanwhile"
    ROWS_REJECTED = "records are rejected with a reason, their neighbors are written; an atomic job fails"
    CONVERTED = "everything is written as if nothing had happened"
    SKIPPED = "the table skips rows: they count as skipped, not as written"
    UNAVAILABLE = "as blocked, but for every dataset"
    EXACT = "blocked, rejected or written: any of them, as long as every record is accounted for"


@dataclass(frozen=True, slots=True)
class Poison:
    """A job with records that cannot be written.

    batches: given the number of the first record, the payload and record count of each batch. bad: positions in the job
    that must be rejected. code: with which code; "" for any. sparse: the good records have only their keys set.
    twice: the same batches are submitted as two jobs.
    """

    batches: Callable[[int], list[tuple[bytes, int]]]
    bad: frozenset[int]
    code: str
    sparse: bool = True
    twice: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    apply, repair: SQL, executed as one transaction each by a superuser; `{table}` and the other names of
    `sql_names` stand for those of the victim. holds: SQL whose transaction stays open until the repair. around:
    what SQL cannot do: given a superuser's connection string and the table; left at the repair. effects: by policy,
    where it is not `effect`. keeps: the rows are copied to `{kept}` before `apply`, and the table is locked from then
    on. poison: a job that the victim submits while the fault is in force. whole: hits the database or the role instead
    of a table: runs alone. from_outside: its SQL is executed in another database. slow: not in the short
    selection.
    """

    name: str
    effect: Effect
    apply: str = ""
    repair: str = ""
    holds: str = ""
    around: Callable[[str, str], AbstractContextManager[object]] | None = None
    policies: tuple[ConflictPolicy, ...] = POLICIES
    effects: Mapping[ConflictPolicy, Effect] = field(default_factory=dict)
    keeps: bool = False
    poison: Poison | None = None
    message: Message = "Record"
    hash_partitions: int = 0
    whole: bool = False
    from_outside: bool = False
    slow: bool = False

    def effect_of(self, policy: ConflictPolicy) -> Effect:
        """Return the effect on a dataset with a conflict policy."""
        return self.effects.get(policy, self.effect)

    @property
    def fields(self) -> frozenset[str]:
        """The names that its SQL needs."""
        text = " ".join((self.apply, self.repair, self.holds))
        return frozenset(name for _, name, _, _ in string.Formatter().parse(text) if name)


def sql_names(table: str, columns: Mapping[str, str]) -> dict[str, str]:
    """Return what the names in a fault's SQL stand for, except `partition`. columns: the table's, by their part."""
    return {
        "table": f"public.{table}",
        "name": table,
        "kept": f"blast.kept_{table}",
        "role": ROLE,
        "password": PASSWORD,
        "database": "bulkgrpc",
        **columns,
    }
