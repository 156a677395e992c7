"""Writes the text of a `.proto` file for inferred fields. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from bulkgrpc.cli.files.inference import Field, Proposal
from bulkgrpc.cli.files.text_types import DATE, NUMERIC, UUID
from bulkgrpc.datasets.columns import OWN_PREFIX, TENANT, is_reserved
from bulkgrpc.limits import COLUMN_CHARS_MAX
from bulkgrpc.model import is_dataset

_IMPORTS = {
    "google.protobuf.Timestamp": "google/protobuf/timestamp.proto",
    "google.protobuf.Duration": "google/protobuf/duration.proto",
    "google.protobuf.Value": "google/protobuf/struct.proto",
    "google.type.TimeOfDay": "google/type/timeofday.proto",
}
_TEXT_COLUMNS = {DATE: "COLUMN_TYPE_DATE", UUID: "COLUMN_TYPE_UUID", NUMERIC: "COLUMN_TYPE_NUMERIC"}


def proto_text(message: str, table: str, proposal: Proposal, source: str) -> str:
    """Return the text of a `.proto` file with one message. source: name of the file it was inferred from."""
    fields = proposal.fields
    imports = {"bulkgrpc/v1/options.proto", *(_IMPORTS[kind] for kind in _types(fields) if kind in _IMPORTS)}
    lines = [
        'syntax = "proto3";',
        "",
        f"// Inferred from {source}: describe here what a row is.",
        "package datasets.v1;",
        "",
        *(f'import "{name}";' for name in sorted(imports)),
        "",
        f"// One row of {source}.",
        f"message {message} {{",
        "  option (bulkgrpc.v1.dataset) = {",
        f'    table: "{table}"',
        *([f"    // Confirm the key: {proposal.unsure}."] if proposal.unsure else []),
        "    key: [" + ", ".join(f'"{name}"' for name in proposal.key) + "]",
        "  };",
        "",
        *_body(fields, _columns(fields), "  "),
        "}",
    ]
    return "\n".join(lines) + "\n"


def _types(fields: Sequence[Field]) -> Iterator[str]:
    for field in fields:
        yield field.type
        yield from _types(field.fields)


def _body(fields: Sequence[Field], columns: dict[str, str], indent: str) -> Iterator[str]:
    for field in fields:
        if field.fields:
            yield f"{indent}message {field.type} {{"
            yield from _body(field.fields, {one.name: one.name.lower() for one in field.fields}, indent + "  ")
            yield f"{indent}}}"
    for number, field in enumerate(fields, 1):
        for remark in field.remarks:
            yield f"{indent}// {remark[:1].upper()}{remark[1:]}."
        yield indent + _line(field, number, columns[field.name])


def _line(field: Field, number: int, column: str) -> str:
    message = bool(field.fields) or field.type in _IMPORTS
    label = "repeated " if field.repeated else "optional " if field.optional and not message else ""
    label = "" if field.type.startswith("map<") else label
    options = [f"type: {_TEXT_COLUMNS[field.type]}"] if field.type in _TEXT_COLUMNS else []
    if field.type == NUMERIC:
        options += [f"precision: {field.precision}", f"scale: {field.scale}"]
    options += [f'name: "{column}"'] if column != field.name.lower() else []
    listed = [f"(bulkgrpc.v1.column) = {{{' '.join(options)}}}"] if options else []
    # The name in the file, so that the same file loads.
    if field.column != field.name:
        listed.append(f"json_name = {_quoted(field.column)}")
    kind = "string" if field.type in _TEXT_COLUMNS else field.type
    option = f" [{', '.join(listed)}]" if listed else ""
    return f"{label}{kind} {field.name} = {number}{option};"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _columns(fields: Sequence[Field]) -> dict[str, str]:
    """Return the column of each field: its name, or one close to it where a table cannot have that."""
    wanted = {
        field.name: (field.column if is_dataset(field.column.lower()) else field.name).lower() for field in fields
    }
    taken = {TENANT}
    for field, name in wanted.items():
        if is_dataset(name) and not is_reserved(name) and name not in taken:
            taken.add(name)
            continue
        base = name.removeprefix(OWN_PREFIX)
        base = base if base[:1].isalpha() else f"column_{base}"
        suffixes = itertools.chain(("", "_"), (f"_{number}" for number in itertools.count(2)))
        candidates = (base[: COLUMN_CHARS_MAX - len(suffix)] + suffix for suffix in suffixes)
        reserved = taken | {other for other in wanted.values() if other != name}
        wanted[field] = next(one for one in candidates if one not in reserved and not is_reserved(one))
        taken.add(wanted[field])
    return wanted
