"""Which field of a message suits a column of a table that exists. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bulkgrpc.datasets.table_description import TableColumn

_TYPES = {
    "bool": "bool",
    "int2": "int32",
    "int4": "int32",
    "int8": "int64",
    "float4": "float",
    "float8": "double",
    "bytea": "bytes",
    "timestamptz": "google.protobuf.Timestamp",
    "timestamp": "google.protobuf.Timestamp",
    "interval": "google.protobuf.Duration",
}
_OPTIONS = {"date": "COLUMN_TYPE_DATE", "jsonb": "COLUMN_TYPE_JSONB", "uuid": "COLUMN_TYPE_UUID"}
_ELEMENTS = frozenset({"bool", "int2", "int4", "int8", "float4", "float8", "bytea"})
_DIGITS_MAX = 38


@dataclass(frozen=True, slots=True)
class FieldFor:
    """A field that suits a column. type: of Protobuf. repeated: for an array. options: of `(bulkgrpc.v1.column)`."""

    type: str
    repeated: bool = False
    options: tuple[str, ...] = ()

    @property
    def advice(self) -> str:
        """What to do with a field that does not suit the column."""
        of_type = f"repeated {self.type}" if self.repeated else self.type
        return f"make the field a {of_type}{' with ' + ' '.join(self.options) if self.options else ''}"


def field_for(column: TableColumn) -> FieldFor:
    """Return the field that suits a column best; a text, as PostgreSQL reads it, if no other does."""
    if column.is_array:
        return FieldFor(_TYPES[column.base] if column.base in _ELEMENTS else "string", repeated=True)
    if column.base in _TYPES:
        return FieldFor(_TYPES[column.base])
    if column.base in _OPTIONS:
        return FieldFor("string", options=(f"type: {_OPTIONS[column.base]}",))
    if column.base == "numeric" and column.typmod >= 0:
        precision, scale = digits_of(column.typmod)
        if 0 <= scale <= precision <= _DIGITS_MAX:
            digits = (f"precision: {precision}", f"scale: {scale}")
            return FieldFor("string", options=("type: COLUMN_TYPE_NUMERIC", *digits))
    return FieldFor("string")


def digits_of(typmod: int) -> tuple[int, int]:
    """Return the precision and the scale of a numeric with a length. From PostgreSQL 15 on a scale may be below 0."""
    return (typmod - 4) >> 16, (((typmod - 4) & 0x7FF) ^ 0x400) - 0x400
