"""Faults of batches: records that cannot be written, many at once, or expensive to find."""

from __future__ import annotations

from dataclasses import replace

from bulkgrpc.rejections import RejectionCode
from tests.blast.fault import Effect, Fault, Poison
from tests.blast.records import payload

MANY = 50_000
"""As many as a batch may have."""
EMPTY = 20_000
SOME = 5_000
_MALFORMED = b"\x08"
"""Ends within the field that it begins."""
_EVERY_FIFTH = frozenset(range(0, SOME, 5))


def _record(data: bytes) -> bytes:
    """Return a record as an element of a batch."""
    size = len(data)
    length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    return b"\x12" + length + data


def _key(number: int) -> bytes:
    """Return the wire bytes of a record's key."""
    data = payload(number, 1, 0, sparse=True)
    return data[2:]


def _mixed(bad: bytes, rows: int = SOME) -> list[tuple[bytes, int]]:
    """Return a batch whose records are all this one."""
    return [(_record(bad) * rows, rows)]


def _every_fifth(first: int, tail: bytes, *, with_key: bool = True) -> list[tuple[bytes, int]]:
    """A batch whose every fifth record has something more after its key, or has that only."""
    records = []
    for number in range(first, first + SOME):
        key = _key(number)
        bad = (number - first) % 5 == 0
        records.append(_record((key if with_key or not bad else b"") + (tail if bad else b"")))
    return [(b"".join(records), SOME)]


def _with(first: int, tail: bytes) -> bytes:
    """A batch whose records have something more after their keys."""
    return b"".join(_record(_key(number) + tail) for number in range(first, first + SOME))


_ALL = frozenset(range(SOME))
_NUL = b"\x3a\x03a\x00b"
_MINUS = b"\x18" + b"\xff" * 9 + b"\x01"
_FAR_FUTURE = b"\x12\x0a\x08" + b"\x80" * 8 + b"\x40"
"""A time of 2^62 seconds."""


def _poison(name: str, poison: Poison, **more: object) -> Fault:
    return replace(Fault(name, Effect.ROWS_REJECTED, poison=poison), **more)  # type: ignore[arg-type]


BATCH_FAULTS = (
    _poison(
        "50,000 records sent twice",
        Poison(lambda first: [(payload(first, MANY, 0, sparse=True), MANY)], frozenset(), "", twice=True),
        policies=("reject",),
    ),
    _poison(
        "50,000 records sent twice, to be ignored or updated",
        Poison(lambda first: [(payload(first, MANY, 0, sparse=True), MANY)], frozenset(), "", twice=True),
        policies=("ignore", "update"),
        effect=Effect.CONVERTED,
        slow=True,
    ),
    _poison(
        "20,000 empty records",
        Poison(lambda _: [(b"\x12\x00" * EMPTY, EMPTY)], frozenset(range(EMPTY)), RejectionCode.NULL_IN_KEY),
    ),
    _poison(
        "50,000 empty records",
        Poison(lambda _: [(b"\x12\x00" * MANY, MANY)], frozenset(range(MANY)), RejectionCode.NULL_IN_KEY),
        slow=True,
    ),
    _poison(
        "malformed records only",
        Poison(lambda _: _mixed(_MALFORMED), _ALL, RejectionCode.MALFORMED_RECORD),
    ),
    _poison(
        "50,000 malformed records",
        Poison(lambda _: _mixed(_MALFORMED, MANY), frozenset(range(MANY)), RejectionCode.MALFORMED_RECORD),
        slow=True,
    ),
    _poison(
        "every fifth record malformed",
        Poison(
            lambda first: _every_fifth(first, _MALFORMED, with_key=False), _EVERY_FIFTH, RejectionCode.MALFORMED_RECORD
        ),
    ),
    _poison(
        "NUL in texts",
        Poison(lambda first: _every_fifth(first, _NUL), _EVERY_FIFTH, RejectionCode.NUL_IN_TEXT),
    ),
    _poison(
        "NULL in keys",
        Poison(lambda first: _every_fifth(first, b"", with_key=False), _EVERY_FIFTH, RejectionCode.NULL_IN_KEY),
    ),
    _poison(
        "times that no database knows",
        Poison(lambda first: _every_fifth(first, _FAR_FUTURE), _EVERY_FIFTH, ""),
    ),
    _poison(
        "rule broken by every record",
        Poison(lambda first: [(_with(first, _MINUS), SOME)], _ALL, RejectionCode.RULE_VIOLATION),
        message="Ruled",
    ),
    _poison(
        "rule divides by zero",
        Poison(lambda first: [(payload(first, SOME, 0, sparse=True), SOME)], _ALL, "RULE_FAILED"),
        message="Ruled",
    ),
    _poison(
        "50,000 records that break a check",
        Poison(lambda first: [(payload(first, MANY, 0, sparse=True), MANY)], frozenset(range(MANY)), ""),
        apply="ALTER TABLE {table} ADD CONSTRAINT {name}_x CHECK ({text} <> '') NOT VALID",
        repair="ALTER TABLE {table} DROP CONSTRAINT {name}_x",
    ),
    _poison(
        "50,000 records that a trigger rejects",
        Poison(lambda first: [(payload(first, MANY, 0, sparse=True), MANY)], frozenset(range(MANY)), ""),
        apply="CREATE FUNCTION blast.{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF new.{text} = '' THEN "
        "RAISE EXCEPTION 'no text' USING ERRCODE = '45000'; END IF; RETURN new; END $$; "
        "CREATE TRIGGER {name} BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION blast.{name}()",
        repair="DROP TRIGGER {name} ON {table}; DROP FUNCTION blast.{name}()",
    ),
)
