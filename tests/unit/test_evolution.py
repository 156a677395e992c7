"""From one version of a dataset to the next: what is done, and what is refused with the field and the way out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bulkgrpc.datasets import sources
from bulkgrpc.datasets.definition import Dataset, define
from bulkgrpc.datasets.evolution import Incompatible, evolve, same
from bulkgrpc.datasets.meaning import digest_of_schema

HEAD = """syntax = "proto3";
import "bulkgrpc/v1/options.proto";
enum E { E_ZERO = 0; E_ONE = 1; %s }
message N { int32 a = 1; %s }
message M {
  option (bulkgrpc.v1.dataset) = {table: "m" key: ["id"]};
"""
BASE = """int64 id = 1; string name = 2; int32 size = 3; E e = 4; N n = 5;
string price = 6 [(bulkgrpc.v1.column) = {type: COLUMN_TYPE_NUMERIC precision: 10 scale: 2}];
repeated N ns = 7;"""


@pytest.fixture
def of(tmp_path: Path) -> object:
    def compiled(fields: str, enum: str = "", nested: str = "") -> Dataset:
        file = tmp_path / "m.proto"
        file.write_text(HEAD % (enum, nested) + fields + "}")
        return define(sources.compile_proto(file), "M")

    return compiled


def _statements(old: Dataset, new: Dataset) -> list[str]:
    return [statement.as_string(None) for statement in evolve(old, new)]


def test_the_same_definition_is_the_same_whatever_its_comments(of) -> None:  # type: ignore[no-untyped-def]
    assert same(of(BASE), of("// Said otherwise.\n" + BASE))
    assert not same(of(BASE), of(BASE + "int32 more = 8;"))
    assert not same(of(BASE), of(BASE, nested="int32 b = 2;"))
    assert digest_of_schema(of(BASE)) == digest_of_schema(of("// Said otherwise.\n" + BASE))
    others = (of(BASE + "int32 more = 8;"), of(BASE, nested="int32 b = 2;"), of(BASE.replace("name", "title")))
    assert len({digest_of_schema(one) for one in (of(BASE), *others)}) == 4


@pytest.mark.parametrize(
    ("after", "statements"),
    [
        (BASE + "int32 more = 8;", ['ALTER TABLE "public"."m" ADD COLUMN "more" integer']),
        (
            BASE + "optional int32 more = 8 [(bulkgrpc.v1.column).default_value = '7'];",
            ['ALTER TABLE "public"."m" ADD COLUMN "more" integer DEFAULT \'7\''],
        ),
        (
            BASE + "int32 more = 8 [(bulkgrpc.v1.column).not_null = true];",
            ['ALTER TABLE "public"."m" ADD COLUMN "more" integer'],
        ),
        (BASE.replace("precision: 10", "precision: 12"),
         ['ALTER TABLE "public"."m" ALTER COLUMN "price" TYPE numeric(12,2)']),
        (BASE.replace("int32 size", "optional int32 size"),
         ['ALTER TABLE "public"."m" ALTER COLUMN "size" DROP NOT NULL']),
        (BASE.replace("name = 2", "title = 2 [(bulkgrpc.v1.column).name = 'name']"), []),
    ],
)  # fmt: skip
def test_what_needs_no_rewrite_is_done(of, after: str, statements: list[str]) -> None:  # type: ignore[no-untyped-def]
    assert _statements(of(BASE), of(after)) == statements


def test_messages_and_enums_may_grow(of) -> None:  # type: ignore[no-untyped-def]
    grown = of(BASE, enum="E_TWO = 2;", nested="int32 b = 2;")
    assert _statements(of(BASE), grown) == ['ALTER TABLE "public"."m" ADD COLUMN "n_b" integer']


@pytest.mark.parametrize(
    ("after", "field", "says"),
    [
        (BASE.replace("int32 size = 3;", ""), "size", "is gone: keep it"),
        (BASE.replace("size = 3", "size = 8"), "size", "number 3, is gone"),
        (BASE.replace("int32 size", "int64 size"), "size", "add a new field with the new type"),
        (BASE.replace("int32 size", "sint32 size"), "size", "would be misread"),
        (BASE.replace("int32 size", "repeated int32 size"), "size", "would be misread"),
        (BASE.replace("name = 2", "title = 2"), "name", "is gone"),
        (BASE.replace("name = 2", "name = 2 [(bulkgrpc.v1.column).ignore = true]"), "name", "is gone"),
        (BASE.replace("name = 2", "name = 2 [(bulkgrpc.v1.column).index = true]"), "name", "CONCURRENTLY"),
        (BASE + "int32 more = 8 [(bulkgrpc.v1.column).index = true];", "more", "CREATE INDEX CONCURRENTLY"),
        (BASE.replace("size = 3", "size = 3 [(bulkgrpc.v1.column).brin_index = true]"), "size", "CONCURRENTLY"),
        (BASE + "int32 more = 8 [(bulkgrpc.v1.column).brin_index = true];", "more", "USING brin (more)"),
        (BASE.replace("scale: 2", "scale: 3"), "price", "cannot become numeric(10,3)"),
        (BASE.replace("precision: 10", "precision: 9"), "price", "cannot become numeric(9,2)"),
    ],
)
def test_what_would_lose_or_misread_data_is_refused(of, after: str, field: str, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Incompatible, match=re.escape(says)) as refused:
        evolve(of(BASE), of(after))
    assert refused.value.field == field


def test_a_renamed_enum_value_and_a_field_gone_from_a_document_are_refused(of) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Incompatible, match="E_TWO = 2 of E is gone or renamed"):
        evolve(of(BASE, enum="E_TWO = 2;"), of(BASE, enum="E_DEUX = 2;"))
    with pytest.raises(Incompatible, match=r"field n\.b, number 2, is gone"):
        evolve(of(BASE, nested="int32 b = 2;"), of(BASE))


def test_another_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "k.proto"
    datasets = []
    for key in ('key: "a"', 'key: "b"', "conflict_policy: CONFLICT_POLICY_APPEND"):
        file.write_text(
            'syntax = "proto3"; import "bulkgrpc/v1/options.proto"; message K {'
            f'option (bulkgrpc.v1.dataset) = {{table: "k" {key}}}; int32 a = 1; int32 b = 2; }}'
        )
        datasets.append(define(sources.compile_proto(file), "K"))
    for old, new, says in ((0, 1, "is a and cannot become b"), (0, 2, "a and cannot become empty"), (2, 0, "is empty")):
        with pytest.raises(Incompatible, match=f"{says}.*: give the message another table"):
            evolve(datasets[old], datasets[new])


def test_another_operation_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "o.proto"
    datasets = []
    for operation in ("", 'operation: {field: "op" delete: "GONE"}', 'operation: {field: "op" delete: "LOST"}'):
        file.write_text(
            'syntax = "proto3"; import "bulkgrpc/v1/options.proto"; '
            "enum Op { KEPT = 0; GONE = 1; LOST = 2; } message O {"
            f'option (bulkgrpc.v1.dataset) = {{key: "id" conflict_policy: CONFLICT_POLICY_UPDATE {operation}}};'
            "int32 id = 1; Op op = 2; }"
        )
        datasets.append(define(sources.compile_proto(file), "O"))
    for old, new in ((0, 1), (1, 0), (1, 2)):
        with pytest.raises(Incompatible, match=r"operation of dataset o is .* and cannot become"):
            evolve(datasets[old], datasets[new])
