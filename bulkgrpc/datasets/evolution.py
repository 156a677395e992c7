"""From one version of a dataset to the next: what of its table changes, or why it cannot. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from psycopg import sql

from bulkgrpc.datasets.columns import Column
from bulkgrpc.datasets.ddl import column_of, table
from bulkgrpc.datasets.definition import Dataset, find_message
from bulkgrpc.datasets.meaning import meaning_of
from bulkgrpc.datasets.overrides import InvalidDataset

_NUMERIC = re.compile(r"numeric\((\d+),(\d+)\)")
_WIDER = {
    FieldDescriptor.TYPE_INT32: FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_UINT32: FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_SINT32: FieldDescriptor.TYPE_SINT64,
}
"""Types of the same bytes on the wire."""


class Incompatible(InvalidDataset):
    """A new version of a dataset would lose data, or misread the records of the old one's clients."""


def same(old: Dataset, new: Dataset) -> bool:
    """Return whether two definitions are the same: their files differ at most in those of Google and of bulkgrpc."""
    return meaning_of(old) == meaning_of(new)


def evolve(old: Dataset, new: Dataset) -> tuple[sql.Composed, ...]:
    """Return the statements that change the table of `old` so that it takes the records of both versions.

    No statement rewrites or scans the table: nullable columns are added; NOT NULL is dropped; a numeric gets more
    digits; a default changes. None for a table that is not the service's: its columns are compared with what they are
    when the version is registered. Raises Incompatible for any other change, with the field, the reason
    and the way out.
    """
    if old.message_type != new.message_type:
        raise _cannot_become(old, "message_type", old.message_type, new.message_type)
    _check_table(old, new)
    _check_wire(
        find_message(old.descriptors, old.message_type), find_message(new.descriptors, new.message_type), (), set()
    )
    return _change_columns(old, new) if new.existing is None else ()


@dataclass(frozen=True, slots=True)
class FoundColumn:
    """A column that a table has. type: PostgreSQL's name of it. required: whether it is NOT NULL without a default.

    key_position: its position in the primary key, 1 for the first; 0 if it is not part of the key.
    """

    type: str
    required: bool
    key_position: int


def take_over(old: Dataset, new: Dataset, table: Mapping[str, FoundColumn]) -> tuple[sql.Composed, ...]:
    """Return the statements that make the table of `old`, a deleted dataset, the one of `new`.

    table: its columns as they are. They must be those of `old`, and `new` may follow it as far as columns go: nothing
    is read by the old message any more. Raises Incompatible with the field, the reason and the way out.
    """
    way_out = (
        f"give the message another table, change {old.name} so that it fits, or drop it if its rows are not needed"
    )
    _check_table(old, new)
    for column in old.columns:
        found = table.get(column.name)
        if found is None or found.type != _CATALOG_NAMES.get(column.type, column.type):
            what = "no such column" if found is None else f"one of type {found.type}"
            raise Incompatible(
                column.field,
                f"column {column.name} should be {column.type}, but table {old.name}, which was kept when its dataset "
                f"was deleted, has {what}: {way_out}",
            )
    key = sorted((found.key_position, name) for name, found in table.items() if found.key_position)
    if [name for _, name in key] != list(new.primary_key):
        raise Incompatible(
            "key",
            f"the primary key of table {old.name}, which was kept when its dataset was deleted, is not "
            f"({', '.join(new.primary_key)}): {way_out}",
        )
    names = {column.name for column in new.columns}
    for name, found in table.items():
        if found.required and name not in names:
            raise Incompatible(
                "",
                f"table {old.name}, which was kept when its dataset was deleted, has a column {name} that takes no "
                f"null, and the message has no field for it: {way_out}",
            )
    return _change_columns(old, new)


_CATALOG_NAMES = {"time": "time without time zone"}
"""What PostgreSQL calls a type in its catalog, where that is not what we call it."""


def _check_table(old: Dataset, new: Dataset) -> None:
    for name, before, after in (
        ("existing_table", _bound_to(old), _bound_to(new)),
        ("key", ", ".join(old.key) or "empty", ", ".join(new.key) or "empty"),
        ("hash_partitions", str(old.hash_partitions), str(new.hash_partitions)),
        ("partition_by_time", _by_time(old), _by_time(new)),
        ("operation", _operation(old), _operation(new)),
        ("database_collation", str(old.database_collation).lower(), str(new.database_collation).lower()),
    ):
        if before != after:
            raise _cannot_become(old, name, before, after)
    if old.provenance is not None and old.provenance != new.provenance:
        raise _cannot_become(old, "provenance", str(old.provenance), str(new.provenance or "empty"))


def _bound_to(dataset: Dataset) -> str:
    found = dataset.existing
    if found is None:
        return "not set"
    if found.only_tenant:
        return f"{found.text} of tenant {found.only_tenant}"
    if not found.tenant_column:
        return f"{found.text} without the tenant"
    return f"{found.text} with the tenant in {found.tenant_column}, {'' if found.tenant_in_key else 'not '}in the key"


def _by_time(dataset: Dataset) -> str:
    found = dataset.time_partitions
    return "not set" if found is None else f'"{found.column}" by {found.period.label}'


def _operation(dataset: Dataset) -> str:
    found = dataset.operation
    return "not set" if found is None else f'"{found.field}" with "{found.delete}"'


def _cannot_become(old: Dataset, name: str, before: str, after: str) -> Incompatible:
    return Incompatible(
        name, f"{name} of dataset {old.name} is {before} and cannot become {after}: give the message another table"
    )


def _change_columns(old: Dataset, new: Dataset) -> tuple[sql.Composed, ...]:
    known = {column.name: column for column in old.columns}
    after_by_name = {column.name: column for column in new.columns}
    for column in old.columns:
        if column.name not in after_by_name:
            raise Incompatible(
                column.field,
                f"field {column.field}, column {column.name}, is gone: keep it and mark it `deprecated`, clients need "
                "not set it; or give the message another table",
            )
    statements: list[sql.Composed] = []
    for column in new.columns:
        statements += _changed(new, known[column.name], column) if column.name in known else [_added(new, column)]
    return tuple(statements)


def _added(dataset: Dataset, column: Column) -> sql.Composed:
    if column.index or column.brin_index:
        option, using = ("index", "") if column.index else ("brin_index", "USING brin ")
        raise Incompatible(
            column.field,
            f"field {column.field}: an index of a table that is there would stop its writers while it is made: "
            f"leave `{option}` out and run CREATE INDEX CONCURRENTLY ON {dataset.name} {using}({column.name})",
        )
    nullable = Column(column.name, column.field, column.type, nullable=True, default=column.default)
    return sql.SQL("ALTER TABLE {} ADD COLUMN {}").format(table(dataset), column_of(nullable))


def _changed(dataset: Dataset, old: Column, new: Column) -> Iterator[sql.Composed]:
    alter = sql.SQL("ALTER TABLE {} ALTER COLUMN {} ").format(table(dataset), sql.Identifier(new.name))
    if (old.index, old.brin_index) != (new.index, new.brin_index):
        raise Incompatible(
            new.field,
            f"field {new.field}: `index` and `brin_index` are only of a new dataset: leave them as they were, and "
            "create or drop the index yourself, CONCURRENTLY",
        )
    if (old.type, old.kind) != (new.type, new.kind):
        if not _is_wider(old, new):
            raise Incompatible(
                new.field,
                f"field {new.field}: its column is {old.type} and cannot become {new.type} without rewriting the "
                "table: add a new field with the new type and keep this one; or give the message another table",
            )
        yield alter + sql.SQL("TYPE {}").format(sql.SQL(new.type))
    if not old.nullable and new.nullable and new.name not in dataset.primary_key:
        yield alter + sql.SQL("DROP NOT NULL")
    if old.default != new.default:
        yield (
            alter + sql.SQL("SET DEFAULT {}").format(sql.Literal(new.default))
            if new.default
            else alter + sql.SQL("DROP DEFAULT")
        )


def _is_wider(old: Column, new: Column) -> bool:
    before, after = _NUMERIC.fullmatch(old.type), _NUMERIC.fullmatch(new.type)
    if before is None or after is None or old.kind is not new.kind:
        return False
    return before[2] == after[2] and int(before[1]) <= int(after[1])


def _check_wire(old: Descriptor, new: Descriptor, path: tuple[str, ...], seen: set[tuple[str, str]]) -> None:
    """Check that the bytes of old records mean the same in the new message, and of new ones in the old."""
    if (old.full_name, new.full_name) in seen:
        return
    seen.add((old.full_name, new.full_name))
    for field in old.fields:
        where = ".".join((*path, field.name))
        after = new.fields_by_number.get(field.number)
        if after is None:
            raise Incompatible(
                where,
                f"field {where}, number {field.number}, is gone: keep it and mark it `deprecated`, clients need not "
                "set it; or give the message another table",
            )
        if field.is_repeated != after.is_repeated or not _same_bytes(field, after):
            raise Incompatible(
                where,
                f"field {where}, number {field.number}, has another type now, and records of old clients would be "
                "misread: add a field with a number of its own and keep this one",
            )
        if field.enum_type is not None and after.enum_type is not None:
            _check_enum(field.enum_type, after.enum_type, where)
        if field.message_type is not None and after.message_type is not None:
            _check_wire(field.message_type, after.message_type, (*path, field.name), seen)


def _same_bytes(old: FieldDescriptor, new: FieldDescriptor) -> bool:
    return old.type == new.type or _WIDER.get(old.type) == new.type


def _check_enum(old: EnumDescriptor, new: EnumDescriptor, where: str) -> None:
    for value in old.values:
        after = new.values_by_number.get(value.number)
        if after is None or after.name != value.name:
            raise Incompatible(
                where,
                f"field {where}: value {value.name} = {value.number} of {old.full_name} is gone or renamed, and rows "
                "have its name: keep it",
            )
