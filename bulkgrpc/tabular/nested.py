"""Which maps and messages of lists become a field's without a loss. Pure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

is_map: Callable[[pa.DataType], bool] = pa.types.is_map


def keeps_values(source: pa.DataType, target: pa.DataType) -> bool:
    """Return whether a cast changes no value, or fails."""
    if pa.types.is_map(target):
        pairs = ((source.key_type, target.key_type), (source.item_type, target.item_type)) if is_map(source) else ()
        return bool(pairs) and all(keeps_values(*pair) for pair in pairs)
    if pa.types.is_struct(target):
        types = {field.name: field.type for field in target}
        fields = list(source) if pa.types.is_struct(source) else []
        return bool(fields) and all(
            field.name in types and keeps_values(field.type, types[field.name]) for field in fields
        )
    if pa.types.is_list(target):
        lists = pa.types.is_list(source) or pa.types.is_large_list(source)
        return lists and keeps_values(source.value_type, target.value_type)
    kinds: tuple[Callable[[pa.DataType], bool], ...] = (_is_text, _is_bytes, pa.types.is_integer, pa.types.is_timestamp)
    widened = pa.types.is_float32(source) and pa.types.is_float64(target)
    return source.equals(target) or widened or any(is_kind(source) and is_kind(target) for is_kind in kinds)


def loses_entries(column: pa.MapArray) -> bool:
    """Return whether a map has a value that is null, or a key twice."""
    lengths = pc.subtract(column.offsets.slice(1), column.offsets.slice(0, len(column)))
    lengths = pc.if_else(column.is_valid(), lengths, 0)
    pairs = pa.table({"row": np.repeat(np.arange(len(column)), lengths.to_numpy()), "key": column.keys})
    return bool(column.items.null_count) or len(pairs.group_by(["row", "key"]).aggregate([])) < len(pairs)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))
