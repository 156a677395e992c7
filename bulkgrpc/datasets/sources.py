"""From a `.proto` file to a FileDescriptorSet, with our options, Google's well-known and common types at hand."""

from __future__ import annotations

import tempfile
from importlib import resources
from pathlib import Path

import grpc_tools
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.type import date_pb2
from grpc_tools import protoc

from bulkgrpc.datasets.columns import InvalidDataset
from bulkgrpc.datasets.rules import validate_file


def proto_root() -> Path:
    """Return the folder that `bulkgrpc/v1/options.proto` and the examples are below."""
    packaged = Path(str(resources.files("bulkgrpc"))) / "_proto"
    return packaged if packaged.is_dir() else packaged.parent.parent / "proto"


def compile_proto(file: Path, include: Path | None = None) -> bytes:
    """Compile a `.proto` file and all it imports.

    include: folder that its imports are relative to; default: its own folder. Returns a serialized FileDescriptorSet,
    imports before importers. Raises InvalidDataset with what protoc says, FileNotFoundError if the file is not there.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}")
    roots = [include or file.resolve().parent, proto_root(), Path(grpc_tools.__file__).parent / "_proto"]
    roots.append(Path(date_pb2.__file__).parents[2])
    if file.resolve().is_relative_to(proto_root()):
        roots = roots[1:]
    with tempfile.TemporaryDirectory() as directory:
        target, rules = Path(directory) / "set.binpb", Path(directory) / "rules.binpb"
        # protovalidate's wheel brings buf/validate/validate.proto as a descriptor only.
        rules.write_bytes(FileDescriptorSet(file=[FileDescriptorProto.FromString(validate_file())]).SerializeToString())
        arguments = [*(f"-I{root}" for root in roots), f"--descriptor_set_in={rules}"]
        code = protoc.main(
            ["protoc", *arguments, "--include_imports", f"--descriptor_set_out={target}", str(file.resolve())]
        )
        if code != 0:
            raise InvalidDataset("descriptors", f"protoc refused {file}; it said why above")
        return target.read_bytes()


def message_types(descriptors: bytes) -> list[str]:
    """Return the full names of the messages in the last file of a set: those that its author wrote."""
    file = FileDescriptorSet.FromString(descriptors).file[-1]
    return [f"{file.package}.{message.name}" if file.package else message.name for message in file.message_type]
