"""The decoding step against protobuf's own parser: they agree on every record, whatever was done to its bytes."""

from __future__ import annotations

import math
from typing import Any

from google.protobuf import message_factory
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.decoding import Payload
from bulkgrpc.datasets.definition import find_message
from bulkgrpc.datasets.rows import to_rows
from tests.support import examples
from tests.support.rejected import rejections

CODEC = BatchCodec(examples.trades())
Trade: Any = message_factory.GetMessageClass(find_message(examples.trades().descriptors, "examples.v1.Trade"))
GOOD = b"\x08\x05"
PLAIN = ("trade_id", "symbol", "price", "quantity", "signature", "order_id", "risk", "tags", "fills", "fill_prices")

VALID = st.builds(
    lambda **fields: Trade(**fields).SerializeToString(),
    trade_id=st.integers(-(2**63), 2**63 - 1),
    symbol=st.text(max_size=3),
    side=st.integers(-5, 5),
    price=st.text(max_size=3),
    quantity=st.integers(0, 2**32 - 1),
    executed_at=st.builds(dict, seconds=st.integers(-(2**63), 2**63 - 1), nanos=st.integers(-(2**31), 2**31 - 1)),
    venue=st.one_of(st.none(), st.builds(dict, code=st.text(max_size=2), desk=st.integers(-(2**31), 2**31 - 1))),
    remark=st.one_of(st.none(), st.text(max_size=2)),
    fee_minor=st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
    tags=st.lists(st.text(max_size=2), max_size=3),
    fills=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
    fill_prices=st.lists(st.floats(width=64), max_size=3),
    signature=st.binary(max_size=3),
    order_id=st.integers(0, 2**64 - 1),
    risk=st.floats(width=32),
)


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A valid record with bytes changed, taken out, put in, cut off or put after it."""
    data = bytearray(draw(VALID))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 2))
        data[place : place + length] = draw(st.binary(max_size=4))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


def _parsed(record: bytes) -> Any:
    try:
        return Trade.FromString(record)
    except DecodeError:
        return None


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, list):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, float):
        return left == right or (math.isnan(left) and math.isnan(right))
    return bool(left == right)


@settings(max_examples=300, deadline=None)
@given(broken())
@example(b"\x0a" + b"\xff" * 9 + b"\x01")  # a length that makes ptars panic
@example(bytes.fromhex("c8d49efd82b5c3970612"))  # a tag above 32 bits, which ptars lets through
@example(bytes.fromhex("089a1ad09987c3f9a92518"))
def test_a_record_is_a_row_exactly_if_protobuf_reads_it_and_then_with_its_values(record: bytes) -> None:
    rows = to_rows(CODEC, [Payload("acme", 3, examples.batch_of([GOOD, record, GOOD]))])
    message = _parsed(record)
    found = {int(place): row for row, place in enumerate(rows.record_index)}
    assert {0, 2} <= found.keys()
    rejected = rejections(rows)
    assert len(found) + len(rejected) == 3
    if message is None:
        assert [where[:3] for where in rejected] == [(0, 1, "MALFORMED_RECORD")]
    elif not rejected:
        for name in PLAIN:
            expected = getattr(message, name)
            expected = list(expected) if isinstance(rows.table.column(name)[0].as_py(), list) else expected
            assert _same(rows.table.column(name)[found[1]].as_py(), expected), name
        remark = rows.table.column("remark")[found[1]].as_py()
        assert remark == (message.remark if message.HasField("remark") else None)
    else:
        assert rejected[0][2] in ("NUL_IN_TEXT", "OUT_OF_RANGE")
