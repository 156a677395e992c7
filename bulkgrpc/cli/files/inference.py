"""Infers a `.proto` file from a file's columns: a message whose records are the file's rows. Pure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from bulkgrpc.cli.files.errors import FileError
from bulkgrpc.cli.files.keys import find_key
from bulkgrpc.datasets.columns import OWN_PREFIX, TENANT, is_reserved
from bulkgrpc.limits import COLUMN_CHARS_MAX
from bulkgrpc.model import is_dataset

DATE = "date"
"""Type of a `string` field whose column has the type date, so that programs write dates as people do."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_SCALARS = {
    pa.int8(): "int32",
    pa.int16(): "int32",
    pa.int32(): "int32",
    pa.int64(): "int64",
    pa.uint8(): "uint32",
    pa.uint16(): "uint32",
    pa.uint32(): "uint32",
    pa.uint64(): "uint64",
    pa.float16(): "float",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.bool_(): "bool",
    pa.string(): "string",
    pa.binary(): "bytes",
}
_IMPORTS = {
    "google.protobuf.Timestamp": "google/protobuf/timestamp.proto",
}
_KEY_TYPES = frozenset({"int32", "int64", "uint32", "uint64", "bool", "string", DATE, *_IMPORTS})

# Types of a text column, narrowest first, with the pattern that every value must match.
_TEXTS = (
    ("bool", r"^(?:true|false)$"),
    ("int64", r"^(?:0|-?[1-9]\d{0,17})$"),
    ("double", r"^[+-]?(?:0|[1-9]\d*)?(?:\.\d+|\d\.)?(?:[eE][+-]?\d{1,3})?$"),
    (DATE, r"^[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])$"),
    (
        "google.protobuf.Timestamp",
        r"^\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?"
        r"(?:[Zz]|[+-]\d{2}:?\d{2})?$",
    ),
)
_ARROW = {
    "bool": pa.bool_(),
    "int64": pa.int64(),
    "double": pa.float64(),
    DATE: pa.date32(),
}
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the message. optional: whether any row has no value for it."""

    name: str
    type: str
    optional: bool
    repeated: bool = False


def infer(table: pa.Table, *, nulls: tuple[str, ...], key: tuple[str, ...] = ()) -> tuple[list[Field], tuple[str, ...]]:
    """Return the fields for a file's columns, and the names of the key's fields.

    table: the whole file. nulls: texts that mean null. key: the key's columns; () finds the fewest columns whose values
    are unique. Raises FileError for a column that cannot be a field, a column that cannot be part of a key, or a file
    without unique columns.
    """
    lowered: dict[str, str] = {}
    for name in table.column_names:
        if _NAME.fullmatch(name) is None:
            raise FileError(f"column {name!r} cannot be a field: rename it to a letter, then letters, digits and _")
        if name.lower() in lowered:
            raise FileError(f"columns {lowered[name.lower()]} and {name} would both become column {name.lower()}")
        lowered[name.lower()] = name
    if table.num_rows == 0:
        raise FileError("the file has no rows to infer types from")
    fields = [_field(name, table.column(name).combine_chunks(), nulls) for name in table.column_names]
    known = {field.name: field for field in fields}
    for name in key:
        if name not in known:
            raise FileError(f"there is no column {name} for the key: the columns are {', '.join(known)}")
        if known[name].optional or known[name].repeated or known[name].type not in _KEY_TYPES:
            raise FileError(
                f"column {name} cannot be part of the key: it has missing values, or its type is {known[name].type}"
            )
    if key:
        return fields, key
    able = [field.name for field in fields if field.type in _KEY_TYPES and not (field.optional or field.repeated)]
    ranked = sorted(able, key=lambda name: (_rank(known[name].type), able.index(name)))
    found = find_key({name: table.column(name) for name in ranked}, table.num_rows)
    if not found:
        raise FileError(
            "no combination of a few columns is unique: name the key's columns with --key; duplicates are ignored"
        )
    return fields, tuple(name for name in table.column_names if name in found)


def proto_text(message: str, table: str, fields: list[Field], key: tuple[str, ...], source: str) -> str:
    """Return the text of a `.proto` file with one message. source: name of the file it was inferred from."""
    columns = _columns(fields)
    imports = ["bulkgrpc/v1/options.proto", *{_IMPORTS[field.type] for field in fields if field.type in _IMPORTS}]
    lines = [
        'syntax = "proto3";',
        "",
        f"// Inferred from {source}: describe here what a row is.",
        "package datasets.v1;",
        "",
        *(f'import "{name}";' for name in sorted(imports)),
        "",
        f"// One row of {source}.",
        f"message {message} {{",
        "  option (bulkgrpc.v1.dataset) = {",
        f'    table: "{table}"',
        "    key: [" + ", ".join(f'"{name}"' for name in key) + "]",
        "  };",
        "",
        *(f"  {line}" for number, field in enumerate(fields, 1) for line in _lines(field, number, columns[field.name])),
        "}",
    ]
    return "\n".join(lines) + "\n"


def _columns(fields: list[Field]) -> dict[str, str]:
    """Return the column of each field: its name, or one close to it where a table cannot have that."""
    wanted = {field.name: field.name.lower() for field in fields}
    taken = {TENANT, *wanted.values()}
    for field, name in wanted.items():
        if is_dataset(name) and not is_reserved(name) and name != TENANT:
            continue
        base = name.removeprefix(OWN_PREFIX)
        base = base if base[:1].isalpha() else f"column_{base}"
        suffixes = itertools.chain(("", "_"), (f"_{number}" for number in itertools.count(2)))
        candidates = (base[: COLUMN_CHARS_MAX - len(suffix)] + suffix for suffix in suffixes)
        wanted[field] = next(one for one in candidates if one not in taken and not is_reserved(one))
        taken.add(wanted[field])
    return wanted


def _lines(field: Field, number: int, column: str) -> Iterator[str]:
    label = "repeated " if field.repeated else "optional " if field.optional and field.type not in _IMPORTS else ""
    options = ["type: COLUMN_TYPE_DATE"] if field.type == DATE else []
    # The field keeps its name, so that the same file loads.
    options += [f'name: "{column}"'] if column != field.name.lower() else []
    option = f" [(bulkgrpc.v1.column) = {{{' '.join(options)}}}]" if options else ""
    yield f"{label}{'string' if field.type == DATE else field.type} {field.name} = {number}{option};"


def _rank(kind: str) -> int:
    # Prefer times and names to numbers, which may be measurements.
    return 0 if kind == DATE or kind in _IMPORTS else 1 if kind == "string" else 2


def _field(name: str, values: pa.Array, nulls: tuple[str, ...]) -> Field:
    kind = values.type
    if pa.types.is_dictionary(kind):
        values = values.dictionary_decode()
        kind = values.type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        values, kind = values.cast(pa.string()), pa.string()
    if pa.types.is_list(kind) and kind.value_type in _SCALARS:
        return Field(name, _SCALARS[kind.value_type], optional=False, repeated=True)
    if pa.types.is_string(kind):
        there = values.filter(pc.invert(pc.is_in(values, pa.array(nulls, pa.string())))) if nulls else values
        return Field(name, _text_type(there.drop_null()), optional=len(there) < len(values) or there.null_count > 0)
    optional = values.null_count > 0
    if pa.types.is_timestamp(kind):
        return Field(name, "google.protobuf.Timestamp", optional)
    if pa.types.is_date32(kind):
        return Field(name, DATE, optional)
    if kind not in _SCALARS:
        raise FileError(f"column {name} has the type {kind}, which cannot be inferred: remove it from the file")
    return Field(name, _SCALARS[kind], optional)


def _text_type(values: pa.Array) -> str:
    if len(values) == 0:
        return "string"
    for kind, pattern in _TEXTS:
        # The first 1000 values rule out most types.
        if all(_look_like(some, pattern) for some in (values.slice(0, 1000), values)) and _converts(values, kind):
            if kind != "int64":
                return kind
            limits = pc.min_max(values.cast(pa.int64()))
            small = limits["min"].as_py() >= -_INT32_MAX - 1 and limits["max"].as_py() <= _INT32_MAX
            return "int32" if small else "int64"
    return "string"


def _look_like(values: pa.Array, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(values, pattern)).as_py())


def _converts(values: pa.Array, kind: str) -> bool:
    if kind not in _ARROW:
        # The pattern of a time also matches days that do not exist, such as February 30.
        try:
            pc.utf8_slice_codeunits(values, 0, 10).cast(pa.date32())
        except pa.ArrowInvalid:
            return False
        return True
    try:
        values.cast(_ARROW[kind])
    except pa.ArrowInvalid:
        return False
    return True
