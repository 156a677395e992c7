"""Converts a block of a file, with columns as read, to records of a dataset. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.tabular.errors import InvalidValue, NotRecords
from bulkgrpc.tabular.fields import Leaf, leaves_of
from bulkgrpc.tabular.json_cells import COLUMN, Cells
from bulkgrpc.tabular.rejection_columns import is_rejection_column
from bulkgrpc.tabular.rules import Rules
from bulkgrpc.tabular.values import convert, plain, read_cells, uuid_texts
from bulkgrpc.tabular.well_known_types import for_codec


class Conversion:
    """Converts the blocks of one file to records of one dataset. cells: whether all values are text, as in CSV."""

    def __init__(self, codec: BatchCodec, rules: Rules, *, cells: bool = False) -> None:
        self._dataset = codec.dataset
        self._schema = codec.record_schema
        self._rules = rules
        self._is_cells = cells
        self._cells = Cells(codec.dataset)
        self.leaves = leaves_of(codec.dataset, codec.record_schema)
        self._has_cells = any(leaf.json for leaf in self.leaves)
        self.schema = self._schema.append(pa.field(COLUMN, pa.binary())) if self._has_cells else self._schema

    def verbatim(self, names: Sequence[str]) -> list[str]:
        """Return the columns whose text is kept even if it means null elsewhere: text that is never null."""
        columns = {name: path for path, name in self._match(names).items()}
        by_path = {leaf.path: leaf for leaf in self.leaves}
        return [name for name, path in columns.items() if _is_verbatim(by_path[path])]

    def records(self, table: pa.Table) -> pa.RecordBatch:
        """Return the records of a block, with the columns of `schema`: the codec's, and COLUMN if cells may be JSON.

        Raises NotRecords if the columns do not match the fields; InvalidValue for the first row with an invalid value.
        """
        table = flat(table)
        columns = self._match(table.column_names)
        found: dict[tuple[str, ...], pa.Array] = {}
        present: dict[tuple[str, ...], pa.Array] = {}
        cells = [pa.array([b""] * len(table), pa.binary())]
        invalid_values: list[InvalidValue] = []
        for leaf in self.leaves:
            name = columns.get(leaf.path)
            raw = pa.nulls(len(table), pa.null()) if name is None else _array(table.column(name), leaf)
            try:
                if name is not None and leaf.json and pa.types.is_string(raw.type):
                    there = self._there(raw, leaf)
                    cells.append(read_cells(_where(raw, there), leaf, name, self._cells))
                    found[leaf.path], present[leaf.path] = _default(pa.nulls(len(table)), leaf), there
                else:
                    found[leaf.path], present[leaf.path] = self._column(raw, leaf, name)
            except InvalidValue as invalid:
                invalid_values.append(invalid)
        if invalid_values:
            first = min(invalid_values, key=lambda invalid: invalid.row)
            raise replace(first, others=lambda: chain.from_iterable(one.all() for one in invalid_values))
        arrays = [self._nest(field, (field.name,), found, present) for field in self._schema]
        if self._has_cells:
            arrays.append(pc.binary_join_element_wise(*cells, b""))
        return pa.record_batch(arrays, schema=self.schema)

    def _match(self, names: Sequence[str]) -> dict[tuple[str, ...], str]:
        """Return the column name of each leaf that the file has."""
        by_spelling = {spelling: leaf for leaf in reversed(self.leaves) for spelling in leaf.spellings}
        for name in self._rules.renames:
            if name not in names:
                raise NotRecords(f"--rename: there is no column {name}: the columns are {', '.join(names)}")
        unknown, columns = [], dict[tuple[str, ...], str]()
        for name in names:
            leaf = by_spelling.get(self._rules.renames.get(name, name))
            if leaf is None:
                if not (self._rules.corrected and is_rejection_column(name)):
                    unknown.append(name)
            elif leaf.path not in columns:
                columns[leaf.path] = name
            else:
                raise NotRecords(f"columns {columns[leaf.path]} and {name} both match field {leaf.name}")
        check_unknown(unknown, self.leaves, ignore=self._rules.ignore_unknown)
        missing = [leaf.name for leaf in self.leaves if leaf.key and leaf.path not in columns]
        if missing:
            raise NotRecords(
                f"the file has no column for these key fields of dataset {self._dataset.name}: {', '.join(missing)}: "
                "rename a column with --rename COLUMN=FIELD"
            )
        missing = [leaf.name for leaf in self.leaves if leaf.path not in columns and not self._may_be_missing(leaf)]
        if missing:
            raise NotRecords(
                f"the file has no column for field {', '.join(missing)}: add it, rename a column with --rename "
                "COLUMN=FIELD, make the field `optional`, or load its default value with --missing-is-default"
            )
        return columns

    def _may_be_missing(self, leaf: Leaf) -> bool:
        return leaf.nullable or len(leaf.path) > 1 or self._rules.missing_is_default or _has_empty_default(leaf)

    def _column(self, raw: pa.Array, leaf: Leaf, name: str | None) -> tuple[pa.Array, pa.Array]:
        """Return a leaf's values, and for each whether the file has a value."""
        if name is None:
            return _default(raw, leaf), pa.array([False] * len(raw), pa.bool_())
        there = self._there(raw, leaf)
        values = convert(raw if _is_verbatim(leaf) else _where(raw, there), leaf, name, self._rules.forms)
        if leaf.key and values.null_count:
            raise _missing(values, name, f"{leaf.needed}: it is part of the key")
        if leaf.nullable or not values.null_count:
            return values, there
        if not self._may_be_missing(leaf):
            hint = "load its default value with --missing-is-default"
            raise _missing(values, name, f"{leaf.needed} (or `optional` in the message)", hint)
        return _default(values, leaf), there

    def _there(self, raw: pa.Array, leaf: Leaf) -> pa.Array:
        """Return for each cell whether it has a value. Empty text is one only of text that can be null or is a key."""
        text = pa.types.is_string(leaf.type) or pa.types.is_binary(leaf.type)
        nested = self._is_cells and _is_verbatim(leaf) and len(leaf.path) > 1
        if pa.types.is_string(raw.type) and (nested or leaf.enum or not text):
            return pc.fill_null(pc.not_equal(raw, ""), False)
        return pc.is_valid(raw)

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


def _is_verbatim(leaf: Leaf) -> bool:
    return bool(pa.types.is_string(leaf.type)) and not (leaf.enum or leaf.nullable or leaf.key)


def _array(column: pa.ChunkedArray, leaf: Leaf) -> pa.Array:
    """Return a column in one piece: Parquet's UUIDs as text where the field is text."""
    values = column.combine_chunks()
    is_uuid = isinstance(values.type, pa.UuidType) and pa.types.is_string(leaf.type)
    return uuid_texts(plain(values)) if is_uuid else plain(values)


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
    if pa.types.is_map(leaf.type) or pa.types.is_list(leaf.type):
        values = pa.nulls(len(values), leaf.type) if pa.types.is_null(values.type) else values
        empty_last = pa.concat_arrays([values, pa.array([[]], leaf.type)])
        places = np.where(values.is_null().to_numpy(zero_copy_only=False), len(values), np.arange(len(values)))
        return empty_last.take(pa.array(places))
    zero: object = "" if pa.types.is_string(leaf.type) else b"" if pa.types.is_binary(leaf.type) else 0
    zero = False if pa.types.is_boolean(leaf.type) else zero
    return pc.fill_null(values.cast(leaf.type), pa.scalar(zero, leaf.type))


def _has_empty_default(leaf: Leaf) -> bool:
    text = pa.types.is_string(leaf.type) or pa.types.is_binary(leaf.type)
    return text or pa.types.is_nested(leaf.type) or bool(leaf.enum)


def _missing(values: pa.Array, name: str, needed: str, hint: str = "") -> InvalidValue:
    rows = np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False)).tolist()
    return InvalidValue(
        rows[0], name, None, needed, hint, lambda: (InvalidValue(row, name, None, needed, hint) for row in rows)
    )


def check_unknown(unknown: Sequence[str], leaves: Sequence[Leaf], *, ignore: bool) -> None:
    """Refuse columns that match no field. Those that differ in case only are never ignored."""
    lowered = {spelling.lower(): leaf.name for leaf in leaves for spelling in leaf.spellings}
    for name in unknown:
        if (found := lowered.get(name.strip().lower())) is not None:
            raise NotRecords(
                f"column {name} is not field {found}: names are compared exactly: use --rename {name}={found}"
            )
    if unknown and not ignore:
        raise NotRecords(
            f"no field matches column {', '.join(unknown)}: ignore such columns with --ignore-unknown-columns, or name "
            f"their field with --rename COLUMN=FIELD; the fields are {', '.join(leaf.name for leaf in leaves)}"
        )
