"""From a `.proto` file to a FileDescriptorSet, with our options, Google's well-known and common types at hand."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import grpc_tools
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.type import date_pb2
from grpc_tools import protoc

from bulkgrpc.datasets.columns import InvalidDataset


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
    roots = [include or file.resolve().parent, *packaged_roots()]
    if file.resolve().is_relative_to(proto_root()):
        roots = roots[1:]
    with tempfile.TemporaryDirectory() as directory, importing(roots) as arguments:
        target = Path(directory) / "set.binpb"
        code = protoc.main(
            ["protoc", *arguments, "--include_imports", f"--descriptor_set_out={target}", str(file.resolve())]
        )
        if code != 0:
            raise InvalidDataset("descriptors", f"protoc refused {file}; it said why above")
        return target.read_bytes()


@contextmanager
def importing(roots: Sequence[Path]) -> Iterator[list[str]]:
    """Yield the arguments with which protoc finds imports: below `roots`, in order, and protovalidate's rules."""
    with tempfile.TemporaryDirectory() as directory:
        rules = Path(directory) / "rules.binpb"
        # buf/validate/validate.proto, as protovalidate's wheel has it, which clients do not install.
        validate = resources.files(__package__).joinpath("validate.binpb").read_bytes()
        rules.write_bytes(FileDescriptorSet(file=[FileDescriptorProto.FromString(validate)]).SerializeToString())
        yield [*(f"-I{root}" for root in roots), f"--descriptor_set_in={rules}"]


def packaged_roots() -> list[Path]:
    """Return the folders of the protos that come with this package, protoc's and Google's common types."""
    return [proto_root(), Path(grpc_tools.__file__).parent / "_proto", Path(date_pb2.__file__).parents[2]]


def message_types(descriptors: bytes) -> list[str]:
    """Return the full names of the messages in the last file of a set: those that its author wrote."""
    file = FileDescriptorSet.FromString(descriptors).file[-1]
    return [f"{file.package}.{message.name}" if file.package else message.name for message in file.message_type]
