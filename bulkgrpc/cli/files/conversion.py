"""Converts a block of a file, with columns as read, to records of a dataset. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bulkgrpc.cli.files.errors import FileError, InvalidValue
from bulkgrpc.cli.files.fields import Leaf, leaves_of
from bulkgrpc.cli.files.json_cells import COLUMN, Cells
from bulkgrpc.cli.files.rejection_columns import is_rejection_column
from bulkgrpc.cli.files.values import convert, plain, read_cells
from bulkgrpc.cli.files.well_known_types import for_codec
from bulkgrpc.datasets.codec import BatchCodec


@dataclass(frozen=True, slots=True)
class Rules:
    """How to read missing values and unknown columns.

    nulls: texts that mean null. null_is_default: whether null in a field that is not nullable means the default value
    (Protobuf JSON omits defaults) instead of an error. ignore_unknown: drop columns that match no field. corrected:
    drop the columns with the reasons in a file of rejected records.
    """

    nulls: tuple[str, ...] = ()
    null_is_default: bool = False
    ignore_unknown: bool = False
    corrected: bool = False


class Conversion:
    """Converts the blocks of one file to records of one dataset."""

    def __init__(self, codec: BatchCodec, rules: Rules) -> None:
        self._dataset = codec.dataset
        self._schema = codec.record_schema
        self._rules = rules
        self._cells = Cells(codec.dataset)
        self.leaves = leaves_of(codec.dataset, codec.record_schema)
        self._has_cells = any(leaf.json for leaf in self.leaves)
        self.schema = self._schema.append(pa.field(COLUMN, pa.binary())) if self._has_cells else self._schema
        self._nulls = pa.array(rules.nulls, pa.string())

    def records(self, table: pa.Table) -> pa.RecordBatch:
        """Return the records of a block, with the columns of `schema`: the codec's, and COLUMN if cells may be JSON.

        Raises FileError if the columns do not match the fields; InvalidValue for the first row with an invalid value.
        """
        table = flat(table)
        columns = self._match(table)
        found: dict[tuple[str, ...], pa.Array] = {}
        present: dict[tuple[str, ...], pa.Array] = {}
        cells = [pa.array([b""] * len(table), pa.binary())]
        invalid_values: list[InvalidValue] = []
        for leaf in self.leaves:
            name = columns.get(leaf.path)
            raw = pa.nulls(len(table), pa.null()) if name is None else table.column(name).combine_chunks()
            try:
                if name is not None and leaf.json and pa.types.is_string(plain(raw).type):
                    there = self._there(raw)
                    cells.append(read_cells(_where(plain(raw), there), leaf, name, self._cells))
                    found[leaf.path], present[leaf.path] = _default(pa.nulls(len(table)), leaf), there
                else:
                    found[leaf.path], present[leaf.path] = self._column(raw, leaf, name)
            except InvalidValue as invalid:
                invalid_values.append(invalid)
        if invalid_values:
            raise min(invalid_values, key=lambda invalid: invalid.row)
        arrays = [self._nest(field, (field.name,), found, present) for field in self._schema]
        if self._has_cells:
            arrays.append(pc.binary_join_element_wise(*cells, b""))
        return pa.record_batch(arrays, schema=self.schema)

    def _match(self, table: pa.Table) -> dict[tuple[str, ...], str]:
        """Return the column name of each leaf that the file has."""
        by_spelling = {spelling: leaf for leaf in reversed(self.leaves) for spelling in leaf.spellings}
        unknown, columns = [], dict[tuple[str, ...], str]()
        for name in table.column_names:
            leaf = by_spelling.get(name)
            if leaf is None:
                if not (self._rules.corrected and is_rejection_column(name)):
                    unknown.append(name)
            elif leaf.path not in columns:
                columns[leaf.path] = name
            else:
                raise FileError(f"columns {columns[leaf.path]} and {name} both match field {leaf.name}")
        if unknown and not self._rules.ignore_unknown:
            raise FileError(_unknown_columns(unknown, self.leaves))
        missing = [leaf.name for leaf in self.leaves if leaf.key and leaf.path not in columns]
        if missing:
            raise FileError(
                f"the file has no column for these key fields of dataset {self._dataset.name}: {', '.join(missing)}"
            )
        return columns

    def _column(self, raw: pa.Array, leaf: Leaf, name: str | None) -> tuple[pa.Array, pa.Array]:
        """Return a leaf's values, and for each whether the file has a value."""
        if name is None:
            return _default(raw, leaf), pa.array([False] * len(raw), pa.bool_())
        text, there = pa.types.is_string(raw.type), self._there(raw)
        verbatim = text and pa.types.is_string(leaf.type) and not leaf.enum and not leaf.nullable and not leaf.key
        if not verbatim:
            raw = _where(raw, there)
        values = convert(raw, leaf, name)
        if leaf.key and values.null_count:
            raise InvalidValue(_first_null(values), name, None, f"{leaf.needed}: it is part of the key")
        if leaf.nullable or not values.null_count:
            return values, there
        top = len(leaf.path) == 1
        if top and not self._rules.null_is_default and not _has_empty_default(leaf):
            raise InvalidValue(_first_null(values), name, None, f"{leaf.needed} (or `optional` in the message)")
        return _default(values, leaf), there

    def _there(self, raw: pa.Array) -> pa.Array:
        """Return for each cell whether it has a value."""
        as_null = pa.types.is_string(raw.type) and self._rules.nulls
        return pc.invert(pc.is_in(raw, self._nulls)) if as_null else pc.is_valid(raw)

    def _nest(
        self,
        field: pa.Field,
        path: tuple[str, ...],
        found: dict[tuple[str, ...], pa.Array],
        present: dict[tuple[str, ...], pa.Array],
    ) -> pa.Array:
        if path in found:
            return for_codec(found[path], field.type)
        children = [self._nest(child, (*path, child.name), found, present) for child in field.type]
        below = [there for leaf, there in present.items() if leaf[: len(path)] == path]
        any_there = below[0]
        for there in below[1:]:
            any_there = pc.or_(any_there, there)
        return pa.StructArray.from_arrays(children, fields=list(field.type), mask=pc.invert(any_there))


def _where(raw: pa.Array, there: pa.Array) -> pa.Array:
    return pc.if_else(there, raw, pa.scalar(None, raw.type))


def flat(table: pa.Table) -> pa.Table:
    """Return a table whose struct columns are flattened, names joined with dots."""
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    return table


def _default(values: pa.Array, leaf: Leaf) -> pa.Array:
    if leaf.nullable:
        return values.cast(leaf.type)
    if leaf.enum and pa.types.is_string(leaf.type):
        return pc.fill_null(values.cast(leaf.type), dict(leaf.enum)[0])
    if pa.types.is_map(leaf.type):
        values = pa.nulls(len(values), leaf.type) if pa.types.is_null(values.type) else values
        empty_last = pa.concat_arrays([values, pa.array([[]], leaf.type)])
        places = np.where(values.is_null().to_numpy(zero_copy_only=False), len(values), np.arange(len(values)))
        return empty_last.take(pa.array(places))
    if pa.types.is_list(leaf.type):
        offsets = pa.array([0] * (len(values) + 1), pa.int32())
        return pa.ListArray.from_arrays(offsets, pa.array([], leaf.type.value_type), type=leaf.type)
    zero: object = "" if pa.types.is_string(leaf.type) else b"" if pa.types.is_binary(leaf.type) else 0
    zero = False if pa.types.is_boolean(leaf.type) else zero
    return pc.fill_null(values.cast(leaf.type), pa.scalar(zero, leaf.type))


def _has_empty_default(leaf: Leaf) -> bool:
    text = pa.types.is_string(leaf.type) or pa.types.is_binary(leaf.type)
    return text or pa.types.is_nested(leaf.type) or bool(leaf.enum)


def _first_null(values: pa.Array) -> int:
    return int(pc.index(pc.is_null(values), True).as_py())


def _unknown_columns(unknown: Sequence[str], leaves: Sequence[Leaf]) -> str:
    names = ", ".join(unknown)
    fields = ", ".join(leaf.name for leaf in leaves)
    return (
        f"no field matches column {names}: ignore such columns with --ignore-unknown-columns; the fields are {fields}"
    )
