"""What a table is to the role that writes it, as its catalog says. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column of a table.

    type: as declared. stored: the type below its domains. base: pg_type's name of `stored`, of its elements if
    `is_array`. typmod: of `stored`, -1 if none. not_null: also by a domain. has_default: also a domain's, or it is
    generated. identity: "a" ALWAYS, "d" BY DEFAULT, else "". generated: "s" stored, "v" virtual, else "".
    deterministic: whether only equal bytes are equal. may_insert, may_update, may_select: rights of the current role.
    untyped: `stored` without a length. send: the function that returns its binary form, "" if there is none. category:
    as in pg_type, of the element if `is_array`. primary: whether the primary key has it.
    """

    name: str
    type: str
    stored: str
    base: str
    is_array: bool
    typmod: int
    not_null: bool
    has_default: bool
    identity: str
    generated: str
    deterministic: bool
    may_insert: bool
    may_update: bool
    may_select: bool
    untyped: str = ""
    send: str = ""
    category: str = ""
    primary: bool = False


@dataclass(frozen=True, slots=True)
class UniqueKey:
    """A unique index on columns alone, of all rows."""

    columns: frozenset[str]
    valid: bool
    deferrable: bool


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition, at any depth. kind, persistence: as in pg_class. bound: as PostgreSQL prints it, "" below others."""

    name: str
    kind: str
    persistence: str
    bound: str


@dataclass(frozen=True, slots=True)
class Table:
    """What a table is to the current role.

    kind, persistence: as in pg_class. row_security: whether it applies to the role. may_lock: whether the role may lock
    the table for writing. may_stage: whether it may make temporary tables. rules: names of those on INSERT or UPDATE.
    row_triggers: whether there are BEFORE ROW triggers on INSERT or UPDATE, which may change or skip rows.
    delete_triggers: the same on DELETE. triggers: whether users created any trigger. strategy: "h", "l" or "r" of a
    partitioned table, else "". may_delete: whether the role may delete rows. delete_rules: names of rules on DELETE.
    inherited: whether other tables inherit from it, other than partitions.
    """

    kind: str
    persistence: str
    role: str
    database: str
    row_security: bool
    may_lock: bool
    may_stage: bool
    columns: tuple[TableColumn, ...]
    unique_keys: tuple[UniqueKey, ...]
    rules: tuple[str, ...]
    row_triggers: bool
    triggers: bool
    strategy: str
    partitions: tuple[Partition, ...]
    may_delete: bool = True
    delete_rules: tuple[str, ...] = ()
    inherited: bool = False
    delete_triggers: bool = False


def parse_table(document: Mapping[str, Any]) -> Table:
    """Return the table that the JSON document of the statement `describe` is about."""
    found = dict(document)
    return Table(
        columns=tuple(TableColumn(**column) for column in found.pop("columns")),
        unique_keys=tuple(
            UniqueKey(frozenset(key["columns"]), key["valid"], key["deferrable"]) for key in found.pop("unique_keys")
        ),
        rules=tuple(found.pop("rules")),
        delete_rules=tuple(found.pop("delete_rules")),
        strategy=found.pop("strategy") or "",
        partitions=tuple(Partition(**partition) for partition in found.pop("partitions")),
        **found,
    )
