"""Files of tests/data/files that are written by each test session, because they are no text."""

from __future__ import annotations

import uuid
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

FOLDER = Path(__file__).resolve().parent.parent / "data" / "files"
_SECOND = 1_769_839_200  # 2026-01-31T06:00:00Z
_TIMES = [datetime(9999, 12, 31), datetime(2026, 1, 31, 6), datetime(1500, 1, 1, 12)]
_AMOUNTS = [Decimal(text) for text in ("0", "0.00000001", "-0.00000042", "1.5", "1234567890.12345678")]


def write_parquet(folder: Path) -> None:
    """Write the Parquet cases to a folder, without Arrow's own schema, as other programs do."""

    def write(name: str, columns: dict[str, Any], **options: Any) -> None:
        pyarrow.parquet.write_table(pa.table(columns), folder / f"{name}.parquet", store_schema=False, **options)

    def ids(count: int) -> pa.Array:
        return pa.array(range(1, count + 1), pa.int64())

    # INT96: days and nanoseconds of the day, so any year.
    times = {"id": ids(3), "at": pa.array(_TIMES, pa.timestamp("us"))}
    write("int96", times, use_deprecated_int96_timestamps=True)
    nanos = [_SECOND * 10**9 + 1, _SECOND * 10**9 + 999_999_999]
    write("nanos", {"id": ids(2), "at": pa.array(nanos, pa.timestamp("ns", "UTC"))})
    write("tiny_decimals", {"id": ids(5), "amount": pa.array(_AMOUNTS, pa.decimal128(18, 8))})
    write("all_null", {"uid": pa.array([str(uuid.UUID(int=n)) for n in (1, 2)]), "remark": pa.nulls(2)})
    write("money", {"id": ids(2), "price": pa.array([Decimal("9.90"), Decimal("12.00")], pa.decimal128(12, 2))})
    uids = pa.array([uuid.UUID(int=n).bytes for n in (1, 2)], pa.binary(16))
    write("uuids", {"uid": pa.ExtensionArray.from_storage(pa.uuid(), uids), "remark": pa.array(["a", "b"])})
