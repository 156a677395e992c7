from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import message_factory

from bulkgrpc.datasets import sources
from bulkgrpc.datasets.codec import BatchCodec, rule_failure
from bulkgrpc.datasets.columns import InvalidDataset
from bulkgrpc.datasets.decoding import Payload
from bulkgrpc.datasets.definition import define, find_message
from bulkgrpc.datasets.rows import to_rows
from tests.support import examples
from tests.support.rejected import rejections

PROTO = """syntax = "proto3";
import "buf/validate/validate.proto";
import "bulkgrpc/v1/options.proto";
message Part { int32 size = 1 [(buf.validate.field).int32.gte = 0]; }
message M {
  option (bulkgrpc.v1.dataset) = {table: "m" key: "id"};
  string id = 1 [(buf.validate.field).string.min_len = 1];
  double value = 2 %s;
  Part part = 3;
}
"""


def _codec(folder: Path, rule: str = "[(buf.validate.field).double.lte = 100]") -> BatchCodec:
    file = folder / "m.proto"
    file.write_text(PROTO % rule)
    return BatchCodec(define(sources.compile_proto(file), "M"))


def _records(codec: BatchCodec, *values: dict[str, object]) -> list[bytes]:
    kind = message_factory.GetMessageClass(find_message(codec.dataset.descriptors, "M"))
    return [kind(**value).SerializeToString() for value in values]


def test_a_record_that_breaks_a_rule_is_rejected_with_the_field_and_its_neighbours_become_rows(tmp_path: Path) -> None:
    codec = _codec(tmp_path)
    records = _records(
        codec, {"id": "a"}, {"id": "b", "value": 101}, {"value": 1}, {"id": "c", "part": {"size": -1}}, {"id": "d"}
    )
    payloads = [Payload("acme", 1, examples.batch_of(records[:1])), Payload("acme", 5, examples.batch_of(records))]
    rows = to_rows(codec, payloads)
    assert rows.table.column("id").to_pylist() == ["a", "a", "d"]
    found = rejections(rows)
    assert [rejected[:4] for rejected in found] == [
        (1, 1, "RULE_VIOLATION", "value"),
        (1, 2, "RULE_VIOLATION", "id"),
        (1, 3, "RULE_VIOLATION", "part.size"),
    ]
    assert "100" in found[0][4]


def test_rules_hold_beside_a_malformed_record(tmp_path: Path) -> None:
    codec = _codec(tmp_path)
    good, bad = _records(codec, {"id": "a"}, {"id": "b", "value": 101})
    rows = to_rows(codec, [Payload("acme", 4, examples.batch_of([good, b"\xff", bad, good]))])
    assert [rejected[1:3] for rejected in rejections(rows)] == [(1, "MALFORMED_RECORD"), (2, "RULE_VIOLATION")]
    assert rows.record_index.tolist() == [0, 3]


CEL = '[(buf.validate.field).cel = {id: "x" expression: "%s"}]'


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        (CEL % "this ++", "value"),
        (CEL % "this.size() > 1", "value"),
        (CEL % "nothing > 1", "value"),
        (CEL % "this + 1.0", "value"),
        (CEL % "this + 'a' == 'b'", "value"),
        ("[(buf.validate.field).string.min_len = 1]", "value"),
        # What is nested is compiled too, though an empty record has none of it.
        ("; optional Part p = 4 " + CEL % "this.missing > 1", "p"),
        ('; string s = 4 [(buf.validate.field).string.pattern = "("]', "s"),
        ("; message P { int32 a = 1 %s; } repeated P ps = 4" % (CEL % "this ++"), "ps.a"),
        ("; message P { int32 a = 1 %s; } map<string, P> ps = 4" % (CEL % "this ++"), "ps.value.a"),
        ('; option (buf.validate.message).cel = {id: "x" expression: "this.id >"}', "message_type"),
    ],
)
def test_a_rule_that_cannot_be_compiled_refuses_the_dataset_and_names_its_field(
    tmp_path: Path, rule: str, field: str
) -> None:
    with pytest.raises(InvalidDataset, match="cannot be compiled") as refused:
        _codec(tmp_path, rule)
    assert refused.value.field == field


def test_rules_of_a_message_of_protos_second_version_are_compiled(tmp_path: Path) -> None:
    file = tmp_path / "m.proto"
    file.write_text(
        'syntax = "proto2"; import "buf/validate/validate.proto"; import "bulkgrpc/v1/options.proto"; '
        "enum E { ONE = 1; } message P { required int32 size = 1; } "
        'message M { option (bulkgrpc.v1.dataset) = {table: "m" key: "id"}; required string id = 1 '
        "[(buf.validate.field).string.min_len = 1]; repeated E es = 2; optional E e = 3; repeated bytes bs = 4; "
        "repeated P ps = 5; map<string, P> by_name = 6; repeated bool flags = 7; repeated string texts = 8; }"
    )
    assert BatchCodec(define(sources.compile_proto(file), "M"))._rules is not None


def test_a_rule_that_fails_on_an_empty_record_alone_is_taken(tmp_path: Path) -> None:
    codec = _codec(tmp_path, "; int32 n = 4 " + CEL % "10 / this > 1")
    rows = to_rows(codec, [Payload("acme", 2, examples.batch_of(_records(codec, {"id": "a", "n": 2}, {"id": "b"})))])
    assert rows.table.column("id").to_pylist() == ["a"]
    assert [(*rejected[1:3], rejected[4]) for rejected in rejections(rows)] == [
        (1, "RULE_FAILED", "rule x cannot be evaluated: divide by zero")
    ]


def test_many_records_for_which_a_rule_fails_beside_broken_rules_and_valid_records(tmp_path: Path) -> None:
    codec = _codec(tmp_path, "; int32 n = 4 " + CEL % "10 / this > 1")
    values = [{"id": str(number), "n": number % 3 * 6 - 6} for number in range(300)]
    rows = to_rows(codec, [Payload("acme", 300, examples.batch_of(_records(codec, *values)))])
    found = rejections(rows)
    # -6: 10 / -6 is -1, which breaks the rule; 0: the rule fails; 6: 10 / 6 is 1, which breaks it too.
    assert [code for _, _, code, _, _ in found] == ["RULE_VIOLATION", "RULE_FAILED", "RULE_VIOLATION"] * 100
    assert {reason for _, _, code, _, reason in found if code == "RULE_FAILED"} == {
        "rule x cannot be evaluated: divide by zero"
    }


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("error evaluating a.b: divide by zero", "rule a.b cannot be evaluated: divide by zero"),
        ("error evaluating x: a: b", "rule x cannot be evaluated: a: b"),
        ("something else", "a rule cannot be evaluated: something else"),
    ],
)
def test_a_rule_that_fails_is_named(said: str, expected: str) -> None:
    assert rule_failure(said) == expected


def test_a_message_without_rules_is_not_validated() -> None:
    assert BatchCodec(examples.readings())._rules is None
