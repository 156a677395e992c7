"""A folder of protos: what its datasets are, and where its errors are."""

from __future__ import annotations

from pathlib import Path

import pytest

from bulkgrpc.cli.proto_folder import read_folder
from bulkgrpc.datasets.definition import define
from bulkgrpc.datasets.sources import compile_proto

HEAD = 'syntax = "proto3";\nimport "bulkgrpc/v1/options.proto";\n'
OPTION = 'option (bulkgrpc.v1.dataset) = {table: "%s" key: ["id"]};'
PLACE = 'syntax = "proto3";\npackage shared;\nmessage Place { double latitude = 1; }\n'


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.proto"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def dataset(table: str, fields: str = "") -> str:
    return HEAD + f"message M{table} {{\n  {OPTION % table}\n  string id = 1;\n{fields}}}\n"


def test_datasets_are_in_the_order_of_files_each_with_what_it_imports_and_no_more(tmp_path: Path) -> None:
    located = dataset("b", "  shared.Place place = 2;\n").replace("import", 'import "shared/place.proto";\nimport', 1)
    write(tmp_path, shared__place=PLACE, deep__b=located, a=dataset("a"))
    found = read_folder(tmp_path)
    assert not found.errors
    assert [(one.file, one.message_type) for one in found.datasets] == [("a.proto", "Ma"), ("deep/b.proto", "Mb")]
    first, second = found.datasets
    assert (first.line, second.line, dict(second.field_lines)) == (3, 4, {"id": 6, "place": 7})
    assert b"Place" not in first.descriptors
    assert [column.name for column in define(second.descriptors, "Mb").columns] == ["tenant", "id", "place_latitude"]
    assert first.descriptors == compile_proto(tmp_path / "a.proto"), "one file registers as the same"
    included = read_folder(tmp_path / "deep", include=tmp_path)
    assert [one.descriptors for one in included.datasets] == [second.descriptors]


def test_the_errors_of_all_files_are_found_each_once_with_its_position(tmp_path: Path) -> None:
    broken = PLACE.replace("double latitude = 1;", "double latitude = 1\n")
    located = dataset("b", "  shared.Place place = 2;\n").replace("import", 'import "place.proto";\nimport', 1)
    missing = dataset("c").replace("import", 'import "nowhere.proto";\nimport', 1)
    write(tmp_path, place=broken, b=located, c=missing, d=dataset("d", "  strin name = 2;\n"), e=dataset("e"))
    found = read_folder(tmp_path)
    assert not found.datasets
    errors = [str(error) for error in found.errors]
    assert 'd.proto:6:3: "strin" is not defined.' in errors
    assert any(error.startswith("place.proto:4:2: Expected") for error in errors)
    assert any(error.startswith('c.proto:2:1: Import "nowhere.proto" was not found') for error in errors)
    assert len(errors) == len(set(errors))
    assert not any('Import "place.proto"' in error for error in errors), "its own error is shown, not its importers'"


def test_hidden_folders_are_left_out_and_a_folder_without_protos_says_so(tmp_path: Path) -> None:
    write(tmp_path, **{".cache__x": "broken"})
    with pytest.raises(FileNotFoundError, match=r"no \.proto file below"):
        read_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_folder(tmp_path / "none")
    with pytest.raises(ValueError, match=r"is not .* or a folder above it"):
        read_folder(write(tmp_path, a=dataset("a")), include=tmp_path / ".cache")
