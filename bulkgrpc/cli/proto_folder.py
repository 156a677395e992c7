"""A folder of `.proto` files, compiled: its datasets, each with its own descriptors, and all errors at once."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MessageOptions,
)

from bulkgrpc.datasets.sources import importing, packaged_roots
from bulkgrpc.v1 import options_pb2

_LINE = re.compile(r"(?P<file>[^:]+\.proto):(?:(?P<line>\d+):(?P<column>\d+):)? *(?P<message>.*)")
_IMPORT = re.compile(r'Import "(?P<file>.+)" was not found or had errors')
_MESSAGES, _FIELDS = FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER, DescriptorProto.FIELD_FIELD_NUMBER


@dataclass(frozen=True, slots=True)
class ProtoError:
    """Why a file or one of its datasets cannot be registered.

    file: relative to the folder. line, column: 1 for the first; 0 if unknown. field: path of the field, "" if none.
    """

    file: str
    line: int
    message: str
    column: int = 0
    message_type: str = ""
    field: str = ""

    def __str__(self) -> str:
        position = "".join(f":{number}" for number in (self.line, self.column) if number)
        of = ".".join(part for part in (self.message_type, self.field) if part)
        return f"{self.file}{position}: {of + ': ' if of else ''}{self.message}"


@dataclass(frozen=True, slots=True)
class DatasetSource:
    """A message with a dataset option.

    file: relative to the folder. line: of the message. descriptors: a serialized FileDescriptorSet of the file and what
    it imports. field_lines: line of each of the message's fields, by name.
    """

    file: str
    line: int
    message_type: str
    descriptors: bytes
    field_lines: Mapping[str, int] = field(default_factory=dict)

    def error(self, message: str, field: str = "") -> ProtoError:
        """Return an error of this message. field: path from the message; anything else that names no field is kept."""
        line = self.field_lines.get(field.split(".", maxsplit=1)[0], self.line)
        return ProtoError(self.file, line, message, message_type=self.message_type, field=field)


@dataclass(frozen=True, slots=True)
class ProtoFolder:
    """What a folder has: datasets in the order of their files, or the errors for which it does not compile."""

    datasets: Sequence[DatasetSource]
    errors: Sequence[ProtoError] = ()


def read_folder(folder: Path, include: Path | None = None) -> ProtoFolder:
    """Compile all `.proto` files below a folder, hidden folders excepted.

    include: folder that imports are relative to, `folder` or above it; default: `folder`. Raises FileNotFoundError if
    the folder is not there, or has no `.proto` file.
    """
    root = (include or folder).resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    if not folder.resolve().is_relative_to(root):
        raise ValueError(f"--include {include} is not {folder} or a folder above it: imports would not be found")
    names = [path.relative_to(root) for path in sorted(folder.resolve().rglob("*.proto"))]
    names = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    if not names:
        raise FileNotFoundError(f"no .proto file below {folder}")
    found, said = _compile(root, names)
    if found is None:
        # protoc stops at the first file that it refuses.
        said = [line for name in names for line in _compile(root, [name])[1]]
        return ProtoFolder((), _errors(said, root))
    ours = [file for file in found.file if Path(file.name) in names]
    nested = [error for file in ours for message in file.message_type for error in _nested(file.name, message)]
    return ProtoFolder((), nested) if nested else ProtoFolder(list(_datasets(found, {file.name for file in ours})))


def _compile(root: Path, names: Sequence[Path]) -> tuple[FileDescriptorSet | None, list[str]]:
    """Run protoc. Returns the files with their imports, imports first; or None and what protoc said."""
    with tempfile.TemporaryDirectory() as directory, importing([root, *packaged_roots()]) as arguments:
        target = Path(directory) / "set.binpb"
        output = ("--include_imports", "--include_source_info", f"--descriptor_set_out={target}")
        # In a process of its own: protoc writes its errors to the process's stderr.
        command = [
            sys.executable,
            # Not from the current folder, which may have modules of these names.
            "-P",
            "-m",
            "grpc_tools.protoc",
            *arguments,
            *output,
            *(str(root / name) for name in names),
        ]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode == 0:
            return FileDescriptorSet.FromString(target.read_bytes()), []
    return None, run.stderr.splitlines()


def _errors(said: Sequence[str], root: Path) -> list[ProtoError]:
    """Return protoc's lines as errors, each once. An import that has its own errors is not one of its importers."""
    errors: dict[ProtoError, None] = {}
    for line in said:
        found = _LINE.fullmatch(line.strip().removeprefix(f"{root}/"))
        # The line of the import says that a file is not found, too.
        if found is not None and not found["message"].startswith(("warning:", "File not found")):
            number, column = int(found["line"] or 0), int(found["column"] or 0)
            errors[ProtoError(found["file"], number, found["message"], column)] = None
    if not errors:
        # Not about a line of a file.
        return [ProtoError(str(root), 0, " ".join(said) or "protoc failed and did not say why")]
    faulty = {error.file for error in errors}

    def follows(error: ProtoError) -> bool:
        imported = _IMPORT.match(error.message)
        return imported is not None and imported["file"] in faulty and (root / imported["file"]).is_file()

    return [error for error in errors if not follows(error)]


def _datasets(files: FileDescriptorSet, names: set[str]) -> Iterable[DatasetSource]:
    by_name = {file.name: file for file in files.file}
    for file in files.file:
        for index, message in enumerate(file.message_type):
            if file.name in names and _is_dataset(message):
                lines = {tuple(at.path): at.span[0] + 1 for at in file.source_code_info.location}
                fields = {one.name: lines[_MESSAGES, index, _FIELDS, at] for at, one in enumerate(message.field)}
                name = f"{file.package}.{message.name}" if file.package else message.name
                descriptors = _with_imports(file.name, by_name)
                yield DatasetSource(file.name, lines[_MESSAGES, index], name, descriptors, fields)


def _nested(file: str, message: DescriptorProto) -> Iterator[ProtoError]:
    """Yield an error for each message inside another one that has the option: it would be left out in silence."""
    for inner in message.nested_type:
        if _is_dataset(inner):
            reason = "a dataset is a message at the top level of its file"
            yield ProtoError(file, 0, f"{inner.name} in {message.name}: {reason}")
        yield from _nested(file, inner)


def _is_dataset(message: DescriptorProto) -> bool:
    # Parsed again, to read the extension.
    options = MessageOptions.FromString(message.options.SerializeToString())
    return bool(options.HasExtension(options_pb2.dataset))  # type: ignore[arg-type]


def _with_imports(name: str, files: Mapping[str, FileDescriptorProto]) -> bytes:
    """Return a file and what it imports, in the order of `compile_proto`: without comments and positions."""
    ordered: dict[str, FileDescriptorProto] = {}

    def visit(current: str) -> None:
        if current not in ordered:
            for imported in files[current].dependency:
                visit(imported)
            ordered[current] = files[current]

    visit(name)
    result = FileDescriptorSet(file=ordered.values())
    for file in result.file:
        file.ClearField("source_code_info")
    return result.SerializeToString()
