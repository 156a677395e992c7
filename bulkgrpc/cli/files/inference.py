"""Infers the fields of a message from a sample of a file's rows. Pure."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import time

import pyarrow as pa
import pyarrow.compute as pc

from bulkgrpc.cli.files.errors import FileError
from bulkgrpc.cli.files.keys import find_key
from bulkgrpc.cli.files.text_types import DATE, NUMERIC, TIMESTAMP, UUID, integer_type, text_type
from bulkgrpc.datasets.overrides import DECIMAL_DIGITS_MAX
from bulkgrpc.tabular.errors import UnsuitableValue
from bulkgrpc.tabular.rules import TextForms
from bulkgrpc.tabular.text_values import plain_numbers, times
from bulkgrpc.tabular.values import plain

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_SCALARS = {
    pa.int8(): "int32", pa.int16(): "int32", pa.int32(): "int32", pa.int64(): "int64", pa.uint8(): "uint32",
    pa.uint16(): "uint32", pa.uint32(): "uint32", pa.uint64(): "uint64", pa.float16(): "float", pa.float32(): "float",
    pa.float64(): "double", pa.bool_(): "bool", pa.string(): "string", pa.binary(): "bytes",
}  # fmt: skip
_KINDS = (
    (pa.types.is_timestamp, TIMESTAMP),
    (pa.types.is_time, "google.type.TimeOfDay"),
    (pa.types.is_duration, "google.protobuf.Duration"),
    (pa.types.is_date, DATE),
    (pa.types.is_null, "string"),
)
_KEY_TYPES = frozenset({"int32", "int64", "uint32", "uint64", "bool", "string", DATE, UUID, TIMESTAMP})
_IDENTIFIERS = (r"(?i)^_?(?:id|uuid|guid|uid|key)$", r"(?i)(?:_|\b)(?:id|uuid|guid|key)$|[a-z]I[dD]$")
_MEASURES = r"(?i)(?:amount|count|total|price|value|sum|qty|quantity|temp|weight|height|width|size|score|rate|lat|lon)"


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the message.

    name: of the field. column: the name that the file has. optional: whether a row has no value for it. fields: of a
    message of its own; () for a scalar. precision, scale: of NUMERIC. remarks: what a person should know.
    """

    name: str
    column: str
    type: str
    optional: bool = False
    repeated: bool = False
    fields: tuple[Field, ...] = ()
    precision: int = 0
    scale: int = 0
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Proposal:
    """Fields, the names of the key's fields, and what is unsure about the key, "" if nothing is."""

    fields: tuple[Field, ...]
    key: tuple[str, ...]
    unsure: str


def infer(table: pa.Table, key: Sequence[str], *, numbers: bool = True, forms: TextForms | None = None) -> Proposal:
    """Propose fields and a key for a sample of a file's rows.

    table: text columns without nulls' texts. key: columns or fields of the key; () proposes one. numbers: whether text
    may be a number. forms: how it writes numbers and times. Raises FileError if a column cannot be a field or part of
    the key, or no columns are unique.
    """
    if table.num_rows == 0:
        raise FileError("the file has no rows to infer types from")
    names = field_names(table.column_names)
    fields = tuple(
        _formed(name, column, table.column(column).combine_chunks(), forms or TextForms(), numbers=numbers)
        for name, column in zip(names, table.column_names, strict=True)
    )
    if key:
        return Proposal(fields, _given(key, fields), "")
    found, unsure = _found(table, fields)
    return Proposal(fields, found, unsure)


def field_names(columns: Sequence[str]) -> list[str]:
    """Return a field name for each column: its own, or one close to it. Their JSON names differ, as proto3 demands."""
    names: dict[int, str] = {}
    # Columns whose name is a field's keep it, whatever others become.
    valid = [number for number, column in enumerate(columns) if _NAME.fullmatch(column)]
    for number in [*valid, *(number for number in range(len(columns)) if number not in valid)]:
        base = columns[number] if number in valid else _close_to(columns[number], number + 1)
        suffixes = itertools.chain(("",), (f"_{count}" for count in itertools.count(2)))
        taken = {_json(name) for name in names.values()}
        names[number] = next(base + suffix for suffix in suffixes if _json(base + suffix) not in taken)
    return [names[number] for number in range(len(columns))]


def _json(name: str) -> str:
    return name.replace("_", "").lower()


def _close_to(column: str, number: int) -> str:
    # ß has no decomposition; other letters lose their marks.
    ascii_text = unicodedata.normalize("NFKD", column.replace("ß", "ss")).encode("ascii", "ignore").decode()
    words = re.sub(r"[^A-Za-z0-9]+", "_", ascii_text).strip("_").lower()
    if not words:
        return f"column_{number}"
    return words if words[0].isalpha() else f"column_{words}"


def _given(key: Sequence[str], fields: Sequence[Field]) -> tuple[str, ...]:
    known = {spelling: field for field in reversed(fields) for spelling in (field.column, field.name)}
    for name in key:
        field = known.get(name)
        if field is None:
            columns = ", ".join(field.column for field in fields)
            raise FileError(f"there is no column {name} for the key: the columns are {columns}")
        if not _able(field):
            raise FileError(
                f"column {name} cannot be part of the key: it has missing values, or its type is {field.type}"
            )
    return tuple(known[name].name for name in key)


def _able(field: Field) -> bool:
    able = field.type in _KEY_TYPES or (field.type == NUMERIC and field.scale == 0)
    return able and not (field.optional or field.repeated)


def _found(table: pa.Table, fields: Sequence[Field]) -> tuple[tuple[str, ...], str]:
    """Return a key: identifiers by their name first, then what is unique; and what is unsure about it."""
    able = [field for field in fields if _able(field)]
    values = {field.name: plain(table.column(field.column).combine_chunks()) for field in able}
    by_name = [field for pattern in _IDENTIFIERS for field in able if re.search(pattern, field.column)]
    for field in by_name:
        if find_key({field.name: values[field.name]}, table.num_rows):
            return (field.name,), ""
    ranked = sorted(able, key=lambda field: _rank(field, identifier=field in by_name))
    found = find_key({field.name: values[field.name] for field in ranked}, table.num_rows)
    if not found:
        raise FileError(
            "no combination of a few columns is unique: name the key's columns with --key; duplicates are ignored"
        )
    unsure = f"no column is named like an identifier; these are unique in the {table.num_rows:,} rows that were read"
    return tuple(field.name for field in fields if field.name in found), unsure


def _rank(field: Field, *, identifier: bool) -> int:
    if not field.column or re.fullmatch(r"column_\d+", field.column):
        return 5  # the number of a row says nothing of another file's
    if re.search(_MEASURES, field.column):
        return 4
    if identifier:
        return 0
    return {"string": 1, UUID: 1, DATE: 2, TIMESTAMP: 2}.get(field.type, 3)


def _field(name: str, column: str, values: pa.Array, *, numbers: bool) -> Field:  # noqa: PLR0911 — one for each kind
    field = Field(name, column, "", values.null_count > 0)
    if isinstance(values.type, pa.UuidType):
        return replace(field, type=UUID)
    values = plain(values)
    kind = values.type
    if pa.types.is_string(kind):
        found = text_type(column, values.drop_null(), numbers=numbers)
        return replace(field, type=found.type, precision=found.precision, scale=found.scale, remarks=found.remarks)
    if pa.types.is_decimal(kind):
        if kind.precision > DECIMAL_DIGITS_MAX or not 0 <= kind.scale <= kind.precision:
            raise FileError(f"column {column} has the type {kind}: NUMERIC has 1 to {DECIMAL_DIGITS_MAX} digits")
        return replace(field, type=NUMERIC, precision=kind.precision, scale=kind.scale)
    if pa.types.is_struct(kind):
        return replace(field, type=_message_name(name), fields=_inner(kind, values))
    if pa.types.is_map(kind) and kind.key_type in (pa.string(), pa.int32(), pa.int64()):
        inner = _SCALARS.get(kind.item_type)
        if inner is not None:
            return replace(field, type=f"map<{_SCALARS[kind.key_type]}, {inner}>", optional=False)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _list(field, values)
    found_type = _SCALARS.get(kind) or next((type_ for is_kind, type_ in _KINDS if is_kind(kind)), None)
    if found_type is None:
        raise FileError(f"column {column} has the type {kind}, which no field has: remove it or convert it to text")
    remarks: tuple[str, ...] = ("no row has a value",) if pa.types.is_null(kind) else ()
    if pa.types.is_integer(kind) and values.null_count < len(values):
        remarks = integer_type(column, values.drop_null().cast(pa.string())).remarks
    return replace(field, type=found_type, remarks=remarks)


def _formed(name: str, column: str, values: pa.Array, forms: TextForms, *, numbers: bool) -> Field:
    """Return the field of a column whose numbers and times have the file's own forms."""
    there = plain(values).drop_null() if not isinstance(values.type, pa.UuidType) else values
    if pa.types.is_string(there.type) and len(there) and numbers and forms.decimal != ".":
        try:
            decimals = plain_numbers(there, forms)
        except UnsuitableValue:
            decimals = there
        if text_type(column, decimals).type in {"int32", "int64", "uint64", "double", NUMERIC}:
            # The number of rows without a value stays.
            values = pa.concat_arrays([decimals, pa.nulls(values.null_count, pa.string())])
    field = _field(name, column, values, numbers=numbers)
    try:
        if pa.types.is_string(there.type) and len(there) and forms.time_format:
            moments = times(there, forms)
            whole = all(moment.time() == time() for moment in moments.to_pylist())
            return replace(field, type=DATE if whole else TIMESTAMP, remarks=())
    except UnsuitableValue:
        return field
    if forms.epoch and any("--epoch" in remark for remark in field.remarks):
        return replace(field, type=TIMESTAMP, remarks=())
    return field


def _inner(kind: pa.StructType, values: pa.Array) -> tuple[Field, ...]:
    columns = [field.name for field in kind]
    parts = values.flatten() if len(values) else [pa.nulls(0, field.type) for field in kind]
    return tuple(
        # Text within a message stays text: its sample is small.
        _field(name, column, part.drop_null(), numbers=False)
        if pa.types.is_struct(part.type)
        else replace(_field(name, column, part, numbers=False), optional=True)
        for name, column, part in zip(field_names(columns), columns, parts, strict=True)
    )


def _list(field: Field, values: pa.Array) -> Field:
    inner = plain(pc.list_flatten(values))
    if pa.types.is_string(inner.type):
        return replace(field, type="string", optional=False, repeated=True)
    element = _field(field.name, field.column, inner, numbers=False)
    if element.repeated or element.type.startswith("map<") or element.type in {DATE, UUID, NUMERIC}:
        raise FileError(f"column {field.column} has the type {values.type}, which no field has: convert it to text")
    fields = tuple(replace(one, optional=one.optional and not one.repeated) for one in element.fields)
    return replace(element, optional=False, repeated=True, fields=fields)


def _message_name(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in name.split("_")) or "Part"
