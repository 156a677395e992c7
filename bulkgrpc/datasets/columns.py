"""Which column each field of a message becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from bulkgrpc import model
from bulkgrpc.datasets.overrides import SCALARS, InvalidDataset, Kind, Stored, column_options, message_of, overridden
from bulkgrpc.v1 import options_pb2

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "KEY_TYPES",
    "TENANT",
    "TIMESTAMP",
    "Column",
    "InvalidDataset",
    "Kind",
    "check_new_name",
    "columns_of",
    "is_leaf",
]

TENANT = "tenant"
TIMESTAMP = "google.protobuf.Timestamp"
NESTING_MAX = 8
SYSTEM_COLUMNS = frozenset({"cmax", "cmin", "ctid", "tableoid", "xmax", "xmin"})
"""Columns that every table of PostgreSQL has."""
OWN_PREFIX = "bulkgrpc_"
"""Of the columns that workers add to a dataset's, in tables of staged rows."""

_WRAPPED = {
    "Double": "double precision",
    "Float": "real",
    "Int32": "integer",
    "Int64": "bigint",
    "UInt32": "bigint",
    "UInt64": "numeric",
    "Bool": "boolean",
    "String": "text",
    "Bytes": "bytea",
}
_MESSAGES = {
    TIMESTAMP: Stored("timestamp with time zone"),
    "google.protobuf.Duration": Stored("interval"),
    "google.protobuf.Struct": Stored("jsonb", Kind.JSON),
    "google.protobuf.Value": Stored("jsonb", Kind.JSON),
    "google.protobuf.ListValue": Stored("jsonb", Kind.JSON),
    "google.type.Date": Stored("date", Kind.DATE),
    "google.type.TimeOfDay": Stored("time", Kind.TIME),
    "google.type.Decimal": Stored("text", Kind.DECIMAL),
    **{f"google.protobuf.{name}Value": Stored(kind) for name, kind in _WRAPPED.items()},
}
"""Messages that are stored in one column."""
_DEFAULTED = {
    "integer": "int32",
    "bigint": "int64",
    "boolean": "bool",
    "text": "string",
    "double precision": "float64",
    "real": "float32",
}
"""Names of the Arrow types of the columns that may have a default."""
# No floating-point type: PostgreSQL treats a NaN as equal to itself, other systems do not.
KEY_TYPES = frozenset(
    {
        "integer", "bigint", "numeric", "boolean", "text", "timestamp with time zone", "date", "uuid",
    }
)  # fmt: skip

BRIN_TYPES = frozenset({"integer", "bigint", "timestamp with time zone", "date"})
"""Types of columns that may have a BRIN index."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a dataset's table.

    field: path of the message's field, for instance `venue.code`; "" for the tenant's and the provenance's. type:
    PostgreSQL's name of the type. kind: how its values come from the field's. digits: precision and scale of a
    Kind.NUMERIC. default: what PostgreSQL reads as its value where the field is not set, "" if none. index: whether it
    has one of its own. brin_index: whether it has a BRIN index.
    """

    name: str
    field: str
    type: str
    nullable: bool
    kind: Kind = Kind.PLAIN
    digits: tuple[int, int] = (0, 0)
    default: str = ""
    index: bool = False
    brin_index: bool = False


def is_leaf(descriptor: Descriptor) -> bool:
    """Return whether a message is stored in one column, not in a column per field."""
    return descriptor.full_name in _MESSAGES


def is_reserved(name: str) -> bool:
    """Return whether no field's column can have this name: it is PostgreSQL's, or the service's own."""
    return name in SYSTEM_COLUMNS or name.startswith(OWN_PREFIX)


def columns_of(
    descriptor: Descriptor, tenant_column: str = TENANT, check_name: Callable[[str, str], None] | None = None
) -> tuple[Column, ...]:
    """Return the columns of a message's fields, nested messages flattened with `_` between the names.

    tenant_column: of the table, "" if it has none. check_name: checks a column's name, of a field; default: whether the
    service can create it. Raises InvalidDataset for a field that has no column type, or two with the same name.
    """
    columns = tuple(_columns(descriptor, (), "", nullable=False))
    seen = {tenant_column: ""} if tenant_column else {}
    for column in columns:
        if column.name in seen:
            tenants = "the column of that name which every table has"
            other = seen[column.name] or (tenants if check_name is None else "the column that stores the tenant")
            raise InvalidDataset(
                column.field,
                f"field {column.field} and {other} would both be column {column.name}: specify another with "
                "(bulkgrpc.v1.column).name",
            )
        seen[column.name] = column.field
    for column in columns:
        (check_name or check_new_name)(column.name, column.field)
    return columns


def _columns(descriptor: Descriptor, path: tuple[str, ...], prefix: str, *, nullable: bool) -> Iterator[Column]:
    if len(path) >= NESTING_MAX:
        raise InvalidDataset(
            ".".join(path),
            f"field {'.'.join(path)}: nested deeper than {NESTING_MAX} messages: give it the type COLUMN_TYPE_JSONB",
        )
    for field in descriptor.fields:
        options, steps = column_options(field), (*path, field.name)
        where = ".".join(steps)
        name = options.name or f"{prefix}{field.name}".lower()
        if options.ignore:
            continue
        if field.type == FieldDescriptor.TYPE_GROUP:
            raise InvalidDataset(where, f"field {where}: groups have no column type: make it a message")
        stored = _stored(field, options, where)
        if stored is None:
            _refuse_column_options(options, where)
            yield from _columns(message_of(field), steps, f"{name}_", nullable=True)
            continue
        unset = field.has_presence or (stored.kind is not Kind.PLAIN and not field.is_repeated)
        column = Column(name, where, stored.type, nullable or unset, stored.kind, stored.digits)
        yield _with_options(column, options)


def _stored(field: FieldDescriptor, options: options_pb2.ColumnOptions, where: str) -> Stored | None:
    """Return what one column stores of a field, or None for a message that is flattened."""
    message = field.message_type
    if message is None:
        plain = Stored(SCALARS[field.type] + ("[]" if field.is_repeated else ""))
        return overridden(field, options, where) or plain
    leaf = _MESSAGES.get(message.full_name)
    as_json = Stored("jsonb", Kind.JSON)
    if field.is_repeated or (leaf is None and options.type == options_pb2.COLUMN_TYPE_JSONB):
        if options.type not in (options_pb2.COLUMN_TYPE_UNSPECIFIED, options_pb2.COLUMN_TYPE_JSONB):
            overridden(field, options, where)
        return as_json
    if leaf is not None:
        if leaf.kind is Kind.JSON and options.type == options_pb2.COLUMN_TYPE_JSONB:
            return leaf
        return overridden(field, options, where) or leaf
    if message.full_name.startswith("google.protobuf."):
        raise InvalidDataset(
            where,
            f"field {where}: {message.full_name} has no column type: give it the type COLUMN_TYPE_JSONB or `ignore`",
        )
    overridden(field, options, where)
    return None


def _refuse_column_options(options: options_pb2.ColumnOptions, where: str) -> None:
    if options.not_null or options.index or options.brin_index or options.default_value:
        raise InvalidDataset(
            where,
            f"field {where}: not_null, index, brin_index and default_value are of a column, and this message becomes "
            "several: say them of its fields, or give it the type COLUMN_TYPE_JSONB",
        )


def _check_default(column: Column, default: str) -> None:
    try:
        default_scalar(column.type, default)
    except ValueError as error:  # pyarrow.ArrowInvalid is one
        raise InvalidDataset(
            column.field, f"field {column.field}: default_value {default!r} is not a value of type {column.type}"
        ) from error
    if "\0" in default:
        raise InvalidDataset(column.field, f"field {column.field}: default_value has the character U+0000")


def default_scalar(type_: str, default: str) -> pa.Scalar:
    """Return a column's default as an Arrow value. Raises pyarrow.ArrowInvalid if it is not a value of the type."""
    # Clients import this module, and have no Arrow.
    import pyarrow as pa  # noqa: PLC0415

    return pa.scalar(default).cast(pa.type_for_alias(_DEFAULTED[type_]))


def check_new_name(name: str, where: str) -> None:
    """Check that the service can create a column of this name. where: of its field. Raises InvalidDataset."""
    if not model.is_dataset(name):
        raise InvalidDataset(
            where,
            f"field {where}: {name!r} is not a valid column name: a letter, then up to 62 of a-z, 0-9 and _: "
            "specify another with (bulkgrpc.v1.column).name",
        )
    if is_reserved(name):
        raise InvalidDataset(
            where, f"field {where}: column name {name} is reserved: specify another with (bulkgrpc.v1.column).name"
        )


def _with_options(column: Column, options: options_pb2.ColumnOptions) -> Column:
    where = column.field
    if options.default_value:
        if not column.nullable or options.not_null:
            raise InvalidDataset(
                where, f"field {where}: it takes no null, so no default_value either: make the field `optional`"
            )
        if column.type not in _DEFAULTED or column.kind is not Kind.PLAIN:
            raise InvalidDataset(
                where, f"field {where}: a column of type {column.type} takes no default_value: leave it out"
            )
        _check_default(column, options.default_value)
    if options.index and column.type in ("jsonb",):
        raise InvalidDataset(
            where, f"field {where}: an index of a jsonb column depends on how you ask: create it yourself"
        )
    if options.brin_index and column.type not in BRIN_TYPES:
        raise InvalidDataset(
            where,
            f"field {where}: a BRIN index is for values that grow as records arrive. A column of type {column.type} "
            f"cannot have one, only {', '.join(sorted(BRIN_TYPES))} can: set `index` instead, or leave brin_index out",
        )
    return replace(
        column,
        nullable=column.nullable and not options.not_null,
        default=options.default_value,
        index=options.index,
        brin_index=options.brin_index,
    )
