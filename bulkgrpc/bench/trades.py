"""Wide trades of about 1 KB each: many bytes in few rows."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from bulkgrpc.client import Batch
from bulkgrpc.datasets import definition, sources
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.definition import Dataset

TABLE = "trades"
ROW_BYTES = 1000
"""Bytes of a row in a batch, about: the exact number depends on its varints."""
_SIGNATURE_BYTES = 640
_REMARK_BYTES = 256
_EXECUTED_US = 1_767_225_600_000_000  # 2026-01-01


def dataset() -> Dataset:
    """Return the example dataset `trades`."""
    file = sources.proto_root() / "examples/v1/trades.proto"
    return definition.define(sources.compile_proto(file), "examples.v1.Trade")


def batches(codec: BatchCodec, columns: dict[str, pa.Array], count: int) -> Iterator[Batch]:
    """Yield `count` batches of one tenant, encoded one at a time. Rows differ in `trade_id` only."""
    rows = len(columns["symbol"])
    for number in range(count):
        ids = pa.array(np.arange(number * rows, (number + 1) * rows))
        arrays = [ids if name == "trade_id" else columns[name] for name in codec.record_schema.names]
        (payload,) = codec.encode(pa.record_batch(arrays, schema=codec.record_schema), rows)
        yield Batch(payload, rows)


def columns_of(codec: BatchCodec, rows: int) -> dict[str, pa.Array]:
    """Return the columns of a batch except `trade_id`. Remark and signature are random: they do not compress."""
    source = random.Random(1)  # noqa: S311 — the same bytes in every run
    values: dict[str, list[object]] = {
        "symbol": [f"SYM{number % 50}" for number in range(rows)],
        "side": ["SIDE_BUY"] * rows,
        "price": ["101.2500"] * rows,
        "quantity": [100] * rows,
        "executed_at": [_EXECUTED_US] * rows,
        "venue": [{"code": "XNYS", "country": "US", "desk": 7}] * rows,
        "remark": [source.randbytes(_REMARK_BYTES // 2).hex() for _ in range(rows)],
        "fee_minor": [12] * rows,
        "cancelled": [False] * rows,
        "tags": [["algo", "late"]] * rows,
        "fills": [[40, 60]] * rows,
        "fill_prices": [[101.25, 101.26]] * rows,
        "signature": [source.randbytes(_SIGNATURE_BYTES) for _ in range(rows)],
        "order_id": [1 << 40] * rows,
        "risk": [0.5] * rows,
    }
    return {
        field.name: pa.array(values[field.name], field.type) for field in codec.record_schema if field.name in values
    }
