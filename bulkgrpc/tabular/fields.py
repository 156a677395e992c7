"""The leaf fields of a dataset's message: a file's columns are matched with them and converted to their types. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from bulkgrpc.datasets.columns import is_leaf
from bulkgrpc.datasets.definition import Dataset, find_message
from bulkgrpc.tabular.well_known_types import file_type

_BYTES = "google.protobuf.BytesValue"


@dataclass(frozen=True, slots=True)
class Leaf:
    """A field that has values, not further fields.

    path: field names from the message down. type: Arrow type of the file's column; `well_known_types` converts it to
    the codec's. nullable: whether null differs from the default value. key: whether the field is part of the key. enum:
    numbers and names of its values. json: whether text is parsed as Protobuf JSON. contains_itself: whether its message
    type is recursive; then only such text can be read. column: type of the table's column;
    "" if it has none of its own. json_path: JSON names from the message down. enum_within: whether its message type has
    an enum field, at any depth.
    """

    path: tuple[str, ...]
    type: pa.DataType
    nullable: bool
    key: bool
    enum: tuple[tuple[int, str], ...] = ()
    json: bool = False
    contains_itself: bool = False
    column: str = ""
    json_path: tuple[str, ...] = ()
    enum_within: bool = False

    @property
    def name(self) -> str:
        """The path with dots, for example `venue.code`."""
        return ".".join(self.path)

    @property
    def spellings(self) -> tuple[str, ...]:
        """The names that a column may have: the path, the name of the table's column, and the JSON name."""
        return tuple(dict.fromkeys((self.name, "_".join(self.path), ".".join(self.json_path or self.path))))

    @property
    def needed(self) -> str:  # noqa: PLR0911 — one for each kind of type
        """A description of the values that it accepts, for error messages."""
        if self.json:
            return "Protobuf JSON"
        if pa.types.is_list(self.type):
            inner = Leaf(self.path, self.type.value_type, nullable=False, key=False, enum=self.enum)
            return f"a list whose values are {inner.needed}"
        if self.enum:
            return "one of " + ", ".join(name for _, name in self.enum)
        if self.column in {"numeric", "date", "uuid"} and pa.types.is_string(self.type):
            return {"numeric": "a decimal number", "date": "a date like 2013-01-31", "uuid": "a UUID"}[self.column]
        if pa.types.is_timestamp(self.type):
            return "a time like 2013-01-01T06:00:00Z"
        if pa.types.is_date(self.type):
            return "a date like 2013-01-31"
        if pa.types.is_binary(self.type):
            return "base64"
        if pa.types.is_duration(self.type):
            return "a duration like 1.5s"
        if pa.types.is_time(self.type):
            return "a time of day like 06:30:00"
        return {"double": "a number (double)", "float": "a number (float)", "bool": "true or false"}.get(
            str(self.type), "text" if pa.types.is_string(self.type) else f"a whole number ({self.type})"
        )


def leaves_of(dataset: Dataset, schema: pa.Schema) -> tuple[Leaf, ...]:
    """Return the leaf fields of a dataset's message, in order. schema: the codec's `record_schema`."""
    keys = {column.field for column in dataset.columns if column.name in dataset.key}
    message = find_message(dataset.descriptors, dataset.message_type)
    columns = {column.field: column.type.partition("(")[0] for column in dataset.columns}
    leaves = _leaves(message, list(schema), Leaf((), pa.null(), nullable=False, key=False), keys)
    return tuple(replace(leaf, column=columns.get(leaf.name, "")) for leaf in leaves)


def _leaves(message: Descriptor, fields: list[pa.Field], above: Leaf, keys: set[str]) -> Iterator[Leaf]:
    for field in fields:
        described: FieldDescriptor = message.fields_by_name[field.name]
        steps, names = (*above.path, field.name), (*above.json_path, described.json_name)
        nested = described.message_type
        if nested is not None and not is_leaf(nested) and pa.types.is_struct(field.type):
            yield from _leaves(nested, list(field.type), replace(above, path=steps, json_path=names), keys)
            continue
        enum = () if described.enum_type is None else tuple((v.number, v.name) for v in described.enum_type.values)
        kind = field.type if nested is None else file_type(nested.full_name, field.type)
        element = kind.value_type if pa.types.is_list(kind) else kind
        # The codec represents a recursive message as bytes.
        recursive = nested is not None and pa.types.is_binary(element) and nested.full_name != _BYTES
        yield Leaf(
            steps,
            kind,
            field.nullable,
            ".".join(steps) in keys,
            enum,
            json=recursive or pa.types.is_nested(element),
            contains_itself=nested is not None and _contains_itself(nested, ()),
            enum_within=nested is not None and _has_enum(nested, ()),
            json_path=names,
        )


def _has_enum(message: Descriptor, above: tuple[str, ...]) -> bool:
    if message.full_name in above:
        return False
    inner = [field.message_type for field in message.fields if field.message_type is not None]
    enums = any(field.enum_type is not None for field in message.fields)
    return enums or any(_has_enum(one, (*above, message.full_name)) for one in inner)


def _contains_itself(message: Descriptor, above: tuple[str, ...]) -> bool:
    if message.full_name in above:
        return True
    inner = [field.message_type for field in message.fields if field.message_type is not None]
    return any(_contains_itself(one, (*above, message.full_name)) for one in inner)
