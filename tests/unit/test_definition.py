from __future__ import annotations

import re
from pathlib import Path

import pytest

from bulkgrpc.datasets import sources
from bulkgrpc.datasets.columns import InvalidDataset
from bulkgrpc.datasets.definition import define
from tests.support import examples

HEAD = """syntax = "proto3";
import "bulkgrpc/v1/options.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/any.proto";
"""


def _define(tmp_path: Path, body: str) -> list[tuple[str, str, bool]]:
    file = tmp_path / "m.proto"
    file.write_text(HEAD + body)
    dataset = define(sources.compile_proto(file), "M")
    return [(column.name, column.type, column.nullable) for column in dataset.columns]


def test_a_table_has_the_tenant_and_a_column_a_field() -> None:
    dataset = examples.readings()
    assert [(c.name, c.type, c.nullable) for c in dataset.columns] == [
        ("tenant", "text", False),
        ("sensor_id", "text", False),
        ("value", "double precision", False),
        ("sampled_at", "timestamp with time zone", True),
    ]
    assert dataset.primary_key == ("tenant", "sensor_id", "sampled_at")


APPENDED = """message M { int32 id = 1;
  option (bulkgrpc.v1.dataset) = {table: "m" conflict_policy: CONFLICT_POLICY_APPEND %s};
}"""
OPERATED = """enum Op { KEPT = 0; GONE = 1; }
message M { int32 id = 1; Op op = 2;
  option (bulkgrpc.v1.dataset) = {
    key: "id" conflict_policy: CONFLICT_POLICY_UPDATE operation: {field: "op" delete: "GONE"}
  };
}"""
OPTION = 'option (bulkgrpc.v1.dataset) = {table: "m" key: ["id"]};'


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ("message M { int32 id = 1; }", "message_type", "no option"),
        ('message M { option (bulkgrpc.v1.dataset) = {table: "m"}; int32 id = 1; }', "key", "1 to 8"),
        ('message M { option (bulkgrpc.v1.dataset) = {table: "M" key: "id"}; int32 id = 1; }', "table", "lower case"),
        ('message M { option (bulkgrpc.v1.dataset) = {key: "no"}; int32 id = 1; }', "key", "'no' is no field"),
        (f"message M {{ {OPTION} bytes id = 1; }}", "key", "bytea"),
        ('message M { option (bulkgrpc.v1.dataset) = {table: "m"}; int32 id = 1; }', "key", "CONFLICT_POLICY_APPEND"),
        *(
            (OPERATED.replace(old, new), field, says)
            for old, new, field, says in (
                ("CONFLICT_POLICY_UPDATE", "CONFLICT_POLICY_IGNORE", "operation", "only of a dataset with"),
                ('key: "id"', 'key: "id" dedupe_window: {seconds: 9}', "operation", "would be a duplicate"),
                ('field: "op"', 'field: "id"', "operation.field", "is no enum field"),
                ('field: "op"', 'field: "no"', "operation.field", "is no enum field"),
                (
                    "op = 2",
                    'op = 2 [(bulkgrpc.v1.column).name = "o"]',
                    "operation.field",
                    "leave out its column options",
                ),
                ('"GONE"', '"KEPT"', "operation.delete", "or is 0"),
                ('"GONE"', '"gone"', "operation.delete", "is no value of Op"),
                ("GONE = 1;", "GONE = 1; LEFT = 1; option allow_alias = true;", "operation.field", "two names"),
            )
        ),
        (APPENDED % 'key: "id"', "key", "leave `key` out"),
        (APPENDED % "hash_partitions: 4", "hash_partitions", "set partition_by_time"),
        (
            APPENDED % 'partition_by_time: {field: "at" period: PARTITION_PERIOD_DAY}',
            "partition_by_time.field",
            "no field with a column",
        ),
        (
            APPENDED % 'partition_by_time: {field: "id" period: PARTITION_PERIOD_DAY}',
            "partition_by_time.field",
            "no time and no date",
        ),
        (
            f"message M {{ {OPTION} int32 id = 1; string a = 2 [(bulkgrpc.v1.column).brin_index = true]; }}",
            "a",
            "bigint, date, integer, timestamp with time zone",
        ),
        *(
            (f"message M {{ {OPTION} int32 id = 1; int32 {name} = 2; }}", name, "(bulkgrpc.v1.column).name")
            for name in ("xmin", "xmax", "cmin", "cmax", "CTID", "tableoid", "tenant", "bulkgrpc_row", "bulkgrpc_")
        ),
        (
            f"message M {{ {OPTION} int32 id = 1; Sub bulkgrpc = 2; }} message Sub {{ int32 a = 1; }}",
            "bulkgrpc.a",
            "reserved",
        ),
        (
            'message M { option (bulkgrpc.v1.dataset) = {table: "alembic_version" key: "id"}; int32 id = 1; }',
            "table",
            "specify another",
        ),
        (
            f'message M {{ {OPTION} int32 id = 1; int32 a = 2 [(bulkgrpc.v1.column).name = "ctid"]; }}',
            "a",
            "(bulkgrpc.v1.column).name",
        ),
        (f"message M {{ {OPTION} int32 id = 1; int32 bulkgrpc_row = 2; }}", "bulkgrpc_row", "reserved"),
        (f"message M {{ {OPTION} int32 id = 1; google.protobuf.Any a = 2; }}", "a", "no column type"),
        (
            f"message M {{ {OPTION} int32 id = 1; int32 a = 2 [(bulkgrpc.v1.column).type = COLUMN_TYPE_UUID]; }}",
            "a",
            "a string or bytes",
        ),
        (f"message M {{ {OPTION} int32 id = 1; string a = 2 [(bulkgrpc.v1.column).precision = 3]; }}", "a", "NUMERIC"),
        (
            f"message M {{ {OPTION} int32 id = 1; string a = 2 "
            "[(bulkgrpc.v1.column) = {type: COLUMN_TYPE_NUMERIC precision: 39}]; }",
            "a",
            "1 to 38",
        ),
        (f"message M {{ {OPTION} int32 id = 1; int32 a = 2 [(bulkgrpc.v1.column).name = 'A b']; }}", "a", "another"),
        (
            f"message M {{ {OPTION} int32 id = 1; int32 a = 2 [(bulkgrpc.v1.column).default_value = '1']; }}",
            "a",
            "optional",
        ),
        (f"message M {{ {OPTION} int32 id = 1 [(bulkgrpc.v1.column).ignore = true]; }}", "key", "'id' is no field"),
        (
            f"message M {{ {OPTION} int32 id = 1; optional int32 a = 2 [(bulkgrpc.v1.column).default_value = 'x']; }}",
            "a",
            "not a value of type integer",
        ),
        ('message M { option (bulkgrpc.v1.dataset) = {key: "id" lanes: 17}; int32 id = 1; }', "lanes", "1 to 16"),
        ('message M { option (bulkgrpc.v1.dataset) = {key: "id" lanes: -1}; int32 id = 1; }', "lanes", "1 to 16"),
        (
            'message M { option (bulkgrpc.v1.dataset) = {key: "id" lanes: 2 conflict_policy: CONFLICT_POLICY_UPDATE}; '
            "int32 id = 1; }",
            "lanes",
            "omit lanes",
        ),
        (
            'message M { option (bulkgrpc.v1.dataset) = {key: "id" hash_partitions: 1}; int32 id = 1; }',
            "hash_partitions",
            "2 to 256",
        ),
        (
            'message M { option (bulkgrpc.v1.dataset) = {key: "id" time_to_live: {nanos: 5}}; int32 id = 1; }',
            "time_to_live",
            "1 s to 366 days",
        ),
        (
            'message M { option (bulkgrpc.v1.dataset) = {key: "id" dedupe_window: {nanos: 5}}; int32 id = 1; }',
            "dedupe_window",
            "1 s to 31 days",
        ),
        (f"message M {{ {OPTION} int32 id = 1; M again = 2; }}", "again.again", "nested deeper"),
        (f"message M {{ {OPTION} int32 id = 1; string tenant = 2; }}", "tenant", "every table has"),
        (
            f"message N {{ int32 b = 1; }} message M {{ {OPTION} int32 id = 1; N a = 2; int32 a_b = 3; }}",
            "a_b",
            "both be column",
        ),
    ],
)
def test_a_message_that_cannot_be_a_dataset_is_refused_with_the_field(
    tmp_path: Path, body: str, field: str, says: str
) -> None:
    with pytest.raises(InvalidDataset, match=re.escape(says)) as refused:
        _define(tmp_path, body)
    assert refused.value.field.startswith(field)


def test_a_missing_file_or_message_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.proto"):
        sources.compile_proto(tmp_path / "nothing.proto")
    with pytest.raises(InvalidDataset, match="'No' is not in the descriptors"):
        define(examples.readings().descriptors, "No")
    with pytest.raises(InvalidDataset, match="not a complete FileDescriptorSet"):
        define(b"\xff", "M")


@pytest.mark.parametrize(
    ("key", "options", "field", "says"),
    [
        ('["id"]', 'field: "at" period: PARTITION_PERIOD_DAY', "partition_by_time.field", "add the field to `key`"),
        ('["id"]', 'field: "none" period: PARTITION_PERIOD_DAY', "partition_by_time.field", "is no key field"),
        ('["id"]', 'field: "id" period: PARTITION_PERIOD_DAY', "partition_by_time.field", "no time and no date"),
        ('["id", "at"]', 'field: "at"', "partition_by_time.period", "PARTITION_PERIOD_DAY, _WEEK or _MONTH"),
        (
            '["id", "at"] hash_partitions: 2',
            'field: "at" period: PARTITION_PERIOD_DAY',
            "partition_by_time",
            "a table has one of them",
        ),
    ],
)
def test_a_table_that_cannot_be_partitioned_by_time_is_refused(
    tmp_path: Path, key: str, options: str, field: str, says: str
) -> None:
    body = (
        f'message M {{ option (bulkgrpc.v1.dataset) = {{table: "m" key: {key} partition_by_time: {{ {options} }} }}; '
        "int32 id = 1; google.protobuf.Timestamp at = 2; }"
    )
    with pytest.raises(InvalidDataset, match=re.escape(says)) as refused:
        _define(tmp_path, body)
    assert refused.value.field == field


def test_every_message_in_the_documentation_is_a_dataset(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    blocks = [block for block in re.findall(r"```proto\n(.*?)```", text, re.DOTALL) if "message " in block]
    found = {}
    for block in blocks:
        file = tmp_path / "documented.proto"
        body = re.sub(r"^import .*$", "", block, flags=re.MULTILINE)
        file.write_text(HEAD + body)
        (name,) = re.findall(r"^message (\w+)", body, re.MULTILINE)
        dataset = define(sources.compile_proto(file), name)
        found[dataset.name] = (dataset.conflict_policy, dataset.primary_key, dataset.operation is not None)
    assert found == {
        "visits": ("ignore", ("tenant", "site", "day"), False),
        "page_views": ("append", (), False),
        "customers": ("update", ("tenant", "customer_id"), True),
    }
