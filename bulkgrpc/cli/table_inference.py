"""Writes the `.proto` file of a table that exists, with the options that bind a dataset to it."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from bulkgrpc.cli.console import CommandFailed
from bulkgrpc.datasets.binding import quoted
from bulkgrpc.datasets.bound_conversions import bound_conversion
from bulkgrpc.datasets.columns import Column
from bulkgrpc.datasets.table_description import Table, TableColumn
from bulkgrpc.datasets.table_fields import field_for
from bulkgrpc.limits import KEY_COLUMNS_MAX
from bulkgrpc.model import is_dataset
from bulkgrpc.postgres.databases import connection_to
from bulkgrpc.postgres.table_contract import find_table

TENANT_COLUMN = "tenant"
_IMPORTS = {
    "google.protobuf.Timestamp": "google/protobuf/timestamp.proto",
    "google.protobuf.Duration": "google/protobuf/duration.proto",
}

_APPENDS = (
    "    // The table has no primary key, and no unique index on columns that take no null: every record is a row.",
    "    conflict_policy: CONFLICT_POLICY_APPEND",
)


@dataclass(frozen=True, slots=True)
class Tenancy:
    """What the table has of the tenant. tenant_column: "" for a column `tenant` in its key. only_tenant: otherwise."""

    tenant_column: str
    only_tenant: str


def infer_from_table(postgres: str, name: str, tenancy: Tenancy) -> str:
    """Return the text of a `.proto` file for a table, so that its message registers against the table.

    name: as in SQL. Raises CommandFailed, PostgresError.
    """
    if not name or not postgres:
        missing = "BULKGRPC_POSTGRES is not set: set it to the table's database" if name else "name a file, or --table"
        raise CommandFailed(missing)
    with connection_to(postgres) as connection:
        found = find_table(connection, name)
    if found is None:
        raise CommandFailed(
            f"there is no table {name}: give its schema, and quotes where its name has upper case, as in SQL: "
            "'app.\"Readings\"'"
        )
    return proto_text(*found, tenancy)


def proto_text(schema: str, table: str, found: Table, tenancy: Tenancy) -> str:
    """Return the text of a `.proto` file for a table. Raises CommandFailed if no dataset can be bound to it."""
    where = f"{quoted(schema)}.{quoted(table)}"
    key = _key(found)
    tenant_column = _tenant_column(where, found, key, tenancy)
    columns = [column for column in found.columns if column.name != tenant_column]
    written = [column for column in columns if column.name in key or _is_written(column)]
    names = _field_names(written)
    fields = [f"  {line}" for number, column in enumerate(written, 1) for line in _lines(column, names, number)]
    used = {field_for(column).type for column in written}
    imports = sorted(["bulkgrpc/v1/options.proto", *(_IMPORTS[one] for one in used if one in _IMPORTS)])
    dataset = re.sub(r"[^a-z0-9]+", "_", table.lower()).strip("_")
    dataset = dataset if is_dataset(dataset) else f"table_{dataset}"[:63].rstrip("_")
    of_fields = ", ".join(f'"{names[name]}"' for name in key if name != tenant_column)
    binding = _binding(schema, table, tenant_column, tenancy, in_key=tenant_column in key or not key)
    lines = [
        'syntax = "proto3";',
        "",
        f"// Inferred from table {where}: describe here what a row is.",
        "package datasets.v1;",
        "",
        *(f'import "{one}";' for one in imports),
        "",
        f"// One row of table {where}.",
        *_left_out(columns, written),
        f"message {''.join(part.capitalize() for part in dataset.split('_'))} {{",
        "  option (bulkgrpc.v1.dataset) = {",
        f'    table: "{dataset}"',
        *([f"    key: [{of_fields}]"] if key else _APPENDS),
        f"    existing_table: {{{binding}}}",
        "  };",
        "",
        *fields,
        "}",
    ]
    return "\n".join(lines) + "\n"


def _key(found: Table) -> tuple[str, ...]:
    """Return the columns of the primary key, else of the smallest unique index that can be the key, or none."""
    primary = tuple(column.name for column in found.columns if column.primary)
    required = {column.name for column in found.columns if column.not_null}
    usable = [key for key in found.unique_keys if key.valid and not key.deferrable]
    others = sorted((key.columns for key in usable if key.columns <= required), key=lambda key: (len(key), sorted(key)))
    wanted = next((key for key in [frozenset(primary), *others] if key in {one.columns for one in usable}), None)
    if not wanted:
        return ()
    return tuple(column.name for column in found.columns if column.name in wanted)


def _tenant_column(where: str, found: Table, key: tuple[str, ...], tenancy: Tenancy) -> str:
    names = {column.name for column in found.columns}
    if tenancy.tenant_column and tenancy.tenant_column not in names:
        raise CommandFailed(f"table {where} has no column {tenancy.tenant_column} for --tenant-column")
    wanted = tenancy.tenant_column or (TENANT_COLUMN if TENANT_COLUMN in (key or names) else "")
    if not key:
        return wanted
    left = [name for name in key if name != wanted]
    if not 1 <= len(left) <= KEY_COLUMNS_MAX:
        raise CommandFailed(
            f"the key of table {where} has {len(left)} columns besides the tenant: 1 to {KEY_COLUMNS_MAX}"
        )
    return wanted


def _is_written(column: TableColumn) -> bool:
    """Return whether the message has a field for a column. PostgreSQL fills those that it can fill."""
    if column.has_default or column.identity or column.generated:
        return False
    return _is_possible(column) or column.not_null


def _is_possible(column: TableColumn) -> bool:
    """Return whether a text can be written into a column that has no field of its own."""
    field = field_for(column)
    if field.type != "string" or field.options:
        return True
    text = Column(column.name, column.name, "text[]" if column.is_array else "text", nullable=True)
    return bound_conversion(text, column, key=False) is not None


def _left_out(columns: list[TableColumn], written: list[TableColumn]) -> Iterator[str]:
    there = {column.name for column in written}
    for column in columns:
        if column.name not in there:
            why = "PostgreSQL fills it" if _is_possible(column) else "its type cannot be written"
            yield f"// No field for column {quoted(column.name)} {column.type}: {why}."


def _field_names(columns: list[TableColumn]) -> dict[str, str]:
    """Return a name of a field for each column, all different."""
    names, taken = dict[str, str](), set[str]()
    for column in columns:
        snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column.name).lower()
        base = re.sub(r"[^a-z0-9_]+", "_", snake).strip("_") or "column"
        base = base if base[0].isalpha() else f"column_{base}"
        candidates = itertools.chain([base], (f"{base}_{number}" for number in itertools.count(2)))
        names[column.name] = next(name for name in candidates if name not in taken)
        taken.add(names[column.name])
    return names


def _lines(column: TableColumn, names: dict[str, str], number: int) -> Iterator[str]:
    field, name = field_for(column), names[column.name]
    label = "repeated " if field.repeated else ""
    if not field.repeated and not column.not_null and field.type not in _IMPORTS:
        label = "optional "
    options = [*field.options, *([] if name == column.name else [f"name: {_text(column.name)}"])]
    option = f" [(bulkgrpc.v1.column) = {{{' '.join(options)}}}]" if options else ""
    yield f"{label}{field.type} {name} = {number}{option};"


def _binding(schema: str, table: str, tenant_column: str, tenancy: Tenancy, *, in_key: bool) -> str:
    parts = [f"schema: {_text(schema)} table: {_text(table)}"]
    if tenant_column:
        parts.append(f"tenant_column: {_text(tenant_column)}")
        if not in_key:
            parts.append("key_without_tenant: true")
    else:
        parts.append(f"only_tenant: {_text(tenancy.only_tenant)}")
    return " ".join(parts)


def _text(name: str) -> str:
    # Protobuf reads the escapes of JSON, except those of characters beyond ASCII: those stay as they are.
    return json.dumps(name, ensure_ascii=False)
