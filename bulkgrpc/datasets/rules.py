"""protovalidate's rules of a message, checked natively on whole batches."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from protovalidate import CompilationError, EvaluationError, Validator
from protovalidate._gen.buf.validate import validate_pb

from bulkgrpc.datasets.columns import InvalidDataset

_EXTENSION = 1159
"""Number of the extensions (buf.validate.message), (buf.validate.field) and (buf.validate.oneof)."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that a record breaks: the record's index in its batch, the field's path in it, and what the rule says."""

    record_index: int
    field: str
    reason: str


class BatchRules:
    """The rules of a dataset's message, for batches of it. Not thread-safe."""

    def __init__(self) -> None:
        self._validator = Validator()

    def violations(self, batch: Message) -> list[Violation]:
        """Return what the records of a batch, a message of the synthesized type, break; a record may break several.

        One native call; about 1 M records/s with two rules.
        """
        return [_violation(found.proto) for found in self._validator.collect_violations(batch)]


def rules_of(message: Descriptor, batch: type[Message]) -> BatchRules | None:
    """Return the rules of a message, or None if neither it nor a message nested in it has any.

    batch: the synthesized type of its batches. Raises InvalidDataset if a rule cannot be compiled.
    """
    if not any(map(_has_rules, _nested(message))):
        return None
    rules = BatchRules()
    empty = batch()
    getattr(empty, "records").add()  # noqa: B009 — a field of a type made at run time
    try:
        # A rule that fails on an empty record, as a division by zero, may do well on others.
        with contextlib.suppress(EvaluationError):
            rules.violations(empty)
    except CompilationError as error:
        raise InvalidDataset("message_type", f"a rule of {message.full_name} cannot be compiled: {error}") from error
    return rules


def validate_file() -> bytes:
    """Return the serialized FileDescriptorProto of `buf/validate/validate.proto`, which protovalidate brings."""
    return bytes(validate_pb.desc().proto.to_binary())


def _nested(message: Descriptor) -> list[Descriptor]:
    """Return a message and all that are nested in it, each once."""
    found = {message.full_name: message}
    waiting = [message]
    while waiting:
        for field in waiting.pop().fields:
            inner = field.message_type
            if inner is not None and inner.full_name not in found:
                found[inner.full_name] = inner
                waiting.append(inner)
    return list(found.values())


def _has_rules(message: Descriptor) -> bool:
    options = [message.GetOptions(), *(field.GetOptions() for field in message.fields)]
    options += [oneof.GetOptions() for oneof in message.oneofs]
    return any(_carries_extension(found.SerializeToString()) for found in options)


def _carries_extension(options: bytes) -> bool:
    """Tell whether serialized options have the rules' extension: their pool does not know it as such."""
    unknown: Any = UnknownFieldSet(Empty.FromString(options))
    return any(field.field_number == _EXTENSION for field in unknown)


def _violation(proto: Any) -> Violation:
    # The generated types allow None for what a violation inside a batch always has.
    first, *rest = proto.field.elements
    return Violation(int(first.subscript.value), ".".join(map(_step, rest)), proto.message or proto.rule_id)


def _step(element: Any) -> str:
    name = str(element.field_name)
    return name if element.subscript is None else f"{name}[{element.subscript.value}]"
