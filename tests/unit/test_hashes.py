"""Hashes of records' bytes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.decoding import Payload
from bulkgrpc.datasets.hashes import RecordHasher, RecordHashes, Words
from bulkgrpc.datasets.rows import to_rows
from bulkgrpc.postgres.filters import HashFilter
from tests.support import examples

HASHER = RecordHasher()
CODEC = BatchCodec(examples.remembered())


def hashes(records: list[bytes], tenant: str = "acme") -> Words:
    return HASHER.hashes([examples.batch_of(records)], [tenant], np.array([len(records)], np.int32))


@pytest.mark.parametrize(
    ("record", "blake3"),
    [(b"", "af1349b9f5f9a1a6a0404dea36dcc949"), (b"abc", "6437b3ac38465133ffb63b75273a8db5")],
    ids=["nothing", "abc"],
)
def test_a_hash_is_the_same_in_every_release(record: bytes, blake3: str) -> None:
    salt = hashlib.blake2b(b"acme", digest_size=16).digest()
    expected = bytes(a ^ b for a, b in zip(bytes.fromhex(blake3), salt, strict=True))
    found = RecordHashes.of(hashes([b"x", record]))
    assert found.bytes_of(np.array([1])) == expected
    assert found.column()[1].as_py() == expected


def test_a_hash_is_of_the_record_and_its_tenant_and_not_of_the_batch() -> None:
    records = [b"one", b"two", b"three" * 100, b""]
    whole = hashes(records)
    in_two = HASHER.hashes(
        [b"\x08\x05" + examples.batch_of(records[:1]), examples.batch_of([]), examples.batch_of(records[1:])],
        ["acme", "other", "acme"],
        np.array([1, 0, 3], np.int32),
    )
    assert np.array_equal(whole, in_two)
    assert (whole != hashes(records, "other")).all()
    assert len(np.unique(whole, axis=0)) == 4


def test_what_is_in_a_batch_beside_its_records_changes_nothing() -> None:
    unknown_field = b"\x92\x3e\x03abc"
    payload = unknown_field + examples.batch_of([b"one"]) + unknown_field
    assert np.array_equal(HASHER.hashes([payload], ["acme"], np.array([1], np.int32)), hashes([b"one"]))


def test_the_hashes_of_rows_are_those_of_their_records_whatever_else_is_in_the_chunk() -> None:
    good = [examples.reading(f"S{n % 3}", n, n) for n in range(20, 0, -1)]
    batches = [[good[0], b"\xff", *good[1:10]], good[10:15], [*good[15:], examples.reading("", 5, 1)[2:]]]
    payloads = [Payload("acme", len(batch), examples.batch_of(batch)) for batch in batches]
    unreadable = Payload("acme", 3, b"\xff")
    rows = to_rows(CODEC, [payloads[0], unreadable, *payloads[1:]])
    assert rows.hashes is not None
    batches.insert(1, [])
    for row in range(rows.table.num_rows):
        record = batches[rows.payload[row]][rows.record_index[row]]
        assert np.array_equal(rows.hashes.words[row], hashes([record])[0])
    assert rows.table.num_rows == 21


@given(st.integers(0, 2**32), st.integers(1, 3000))
@settings(max_examples=20, deadline=None)
def test_a_filter_never_denies_what_it_has_and_lets_little_else_through(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    there, others = rng.bytes(count * 16), rng.bytes(16 * 4000)
    made = HashFilter.empty(count)
    made.add(there[: count // 2 * 16])
    made.add(there[count // 2 * 16 :])
    assert made.may_have(there).all()
    assert made.may_have(others).mean() < 0.06


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2), st.booleans()), max_size=30))
def test_kept_hashes_are_sorted_and_know_the_first_of_each(found: list[tuple[int, int, bool]]) -> None:
    words = np.array([(a << 63, b) for a, b, _ in found], np.uint64).reshape(-1, 2)
    mask = np.array([keep for *_, keep in found], np.bool_)
    kept = RecordHashes.of(words).keep(mask)
    again = RecordHashes.of(words[mask])
    assert np.array_equal(kept.words, again.words)
    assert np.array_equal(kept.order, again.order)
    firsts, first_of = kept.firsts()
    plain = [tuple(word) for word in kept.words.tolist()]
    assert first_of.tolist() == [plain.index(word) for word in plain]
    assert firsts.tolist() == [plain.index(word) for word in sorted(set(plain))]
