"""Wide orders as encoded batches: 20 fields, some nested or repeated; no two rows have the same key."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from bulkgrpc.datasets.codec import BatchCodec

_PLACED_US = 1_767_225_600_000_000  # 2026-01-01
Numbers = np.typing.NDArray[np.int64]


def batches(codec: BatchCodec, first: int, rows: int, batch_rows: int) -> list[bytes]:
    """Encode the orders [first, first + rows) of a tenant."""
    numbers = np.arange(first, first + rows)
    columns = [_COLUMNS[field.name](numbers).cast(field.type) for field in codec.record_schema]
    return codec.encode(pa.record_batch(columns, schema=codec.record_schema), batch_rows)


def _names(prefix: str, count: int) -> Callable[[Numbers], pa.Array]:
    names = pa.array([f"{prefix}{number}" for number in range(count)])
    return lambda numbers: names.take(pa.array(numbers % count))


def _times(step_us: int) -> Callable[[Numbers], pa.Array]:
    return lambda numbers: pa.array(_PLACED_US + numbers * step_us, pa.timestamp("us", "UTC"))


def _pairs(values: pa.Array) -> pa.Array:
    offsets = np.arange(0, len(values) + 1, 2, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _place(numbers: Numbers) -> pa.Array:
    desk = pa.array((numbers % 100).astype(np.int32))
    return pa.StructArray.from_arrays(
        [_names("X", 40)(numbers), _names("C", 30)(numbers), desk], names=["code", "country", "desk"]
    )


_COLUMNS: dict[str, Callable[[Numbers], pa.Array]] = {
    "order_id": pa.array,
    "symbol": _names("SYMBOL", 500),
    "account": _names("account-", 900),
    "trader": _names("trader-", 70),
    "price": lambda numbers: pa.array(numbers * 0.25),
    "limit_price": lambda numbers: pa.array(numbers * 0.5),
    "quantity": lambda numbers: pa.array(numbers % 10_000),
    "filled": lambda numbers: pa.array(numbers % 10_000),
    "fee_minor": lambda numbers: pa.array(numbers % 5000),
    "placed_at": _times(1000),
    "changed_at": _times(1001),
    "place": _place,
    "remark": _names("a remark on the order, number ", 50),
    "cancelled": lambda numbers: pa.array(numbers % 7 == 0),
    "risk": lambda numbers: pa.array(numbers * 0.125),
    "tags": lambda numbers: _pairs(_names("tag", 20)(np.repeat(numbers, 2))),
    "fills": lambda numbers: _pairs(pa.array(np.repeat(numbers % 1000, 2).astype(np.int32))),
    "fill_prices": lambda numbers: _pairs(pa.array(np.repeat(numbers, 2) * 0.25)),
    "checksum": lambda numbers: _names("0123456789abcdef", 100)(numbers).cast(pa.binary()),
    "weight": lambda numbers: pa.array((numbers % 100).astype(np.float32)),
}
