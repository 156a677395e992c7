"""Between the bytes of batches and Arrow, all in native code: a whole batch is one message of a synthesized type.

`repeated bytes records = 2` of `RecordBatch` and `repeated T records = 2` have the same wire form, so a message
`Batch { repeated T records = 2; }` decodes a RecordBatch into a list of structs in one call, and encodes one likewise.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence

import ptars
import pyarrow as pa
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from protovalidate import CompilationError, EvaluationError

from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.documents import Documents
from bulkgrpc.datasets.hashes import RecordHasher
from bulkgrpc.datasets.overrides import message_of
from bulkgrpc.datasets.reading import for_decoding
from bulkgrpc.datasets.rules import rules_of
from bulkgrpc.datasets.wire_scan import WireScan
from bulkgrpc.rejections import RejectedRows

_PACKAGE = "bulkgrpc.synthesized"
_CONFIG = ptars.PtarsConfig(
    timestamp_unit="us", timestamp_tz="UTC", enum_repr="string", duration_unit="us", time_unit="us"
)


class UndecodablePayload(ValueError):
    """At least one record of the payloads is not a valid message of the dataset's type."""


class RuleFailed(UndecodablePayload):
    """A rule cannot be evaluated for at least one record of the payloads."""


class BatchCodec:
    """Decodes and encodes the batches of one dataset version.

    record_schema: Arrow schema of the message as `encode` takes it: a field each, nested messages as structs, times in
    µs UTC, enums as their values' names, except where `for_decoding` changes the type. leaves: paths of the fields that
    have a column. documents: converts decoded values to JSON. in_use: locked by `to_rows`; nothing else is thread-safe.
    Raises InvalidDataset naming the field if a rule cannot be compiled.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.in_use = threading.Lock()
        files = FileDescriptorSet.FromString(dataset.descriptors)
        batch = _batch_type(files, dataset.message_type)
        self._record_type = message_of(batch.fields[0])
        self._reference = message_factory.GetMessageClass(batch)
        self._rules = rules_of(dataset.descriptors, dataset.message_type)
        decoded = _batch_type(for_decoding(files), dataset.message_type)
        self._handler = ptars.HandlerPool([decoded.file], _CONFIG).get_for_message(decoded)
        self._batch_schema: pa.Schema = self._handler.schema()
        self._records_type: pa.ListType = self._batch_schema.field(0).type
        self.record_schema: pa.Schema = pa.schema(list(self._records_type.value_type))
        self.leaves = frozenset(column.field for column in dataset.columns)
        self.documents = Documents(message_of(decoded.fields[0]), _CONFIG)

    @functools.cached_property
    def hasher(self) -> RecordHasher:
        """What hashes the records of a dataset that remembers them; loaded when first used."""
        return RecordHasher()

    def decode(self, payloads: Sequence[bytes]) -> pa.ListArray:
        """Decode serialized RecordBatches.

        Returns a list array of len(payloads) whose elements are the records, in order, as structs of `record_schema`.
        Raises UndecodablePayload if any record of any payload is not valid; which one is not known. Two native calls;
        about 5 M records/s.
        """
        return self.decode_checked(payloads)[0]

    def decode_checked(self, payloads: Sequence[bytes]) -> tuple[pa.ListArray, RejectedRows]:
        """Decode as `decode` does, and check the message's rules, if it has any: about 1 M records/s then.

        Returns also the records that break a rule, by their positions among all records of the payloads. Raises
        RuleFailed if a rule cannot be evaluated for a record.
        """
        # ptars lets some records through that protobuf's own parser rejects, and panics on others: that parser
        # decides what is valid. It is twice as fast.
        broken, first = [], 0
        try:
            for payload in payloads:
                batch = self._reference.FromString(payload)
                if self._rules is not None:
                    violations = self._rules.violations(batch)
                    if len(violations):
                        broken.append(RejectedRows(first + violations.row, violations.causes))
                    first += len(batch.records)  # type: ignore[attr-defined]
        except DecodeError as error:
            raise UndecodablePayload(_cause(error)) from error
        except (CompilationError, EvaluationError) as error:
            raise RuleFailed(rule_failure(str(error))) from error
        try:
            return self._handler.list_to_record_batch(list(payloads)).column(0), RejectedRows.concat(broken)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # A hostile length makes ptars panic, with an exception that is not an Exception (unchecked addition in its
            # read_length_delimited).
            raise UndecodablePayload(str(error)) from error

    def first_invalid(self, payload: bytes) -> tuple[int, str] | None:
        """Return the index of the first record that protobuf's parser rejects, and why; None if it reads all.

        The parser keeps what it read before it failed: the last record that it began is the one at fault.
        """
        batch = self._reference()
        try:
            batch.MergeFromString(payload)
        except DecodeError as error:
            return max(len(batch.records) - 1, 0), _cause(error)  # type: ignore[attr-defined]
        return None

    @functools.cached_property
    def wire_scan(self) -> WireScan:
        """What finds malformed records of the dataset's type; created on first use."""
        return WireScan(self._record_type)

    def encode(self, records: pa.RecordBatch, batch_rows: int) -> list[bytes]:
        """Encode records as serialized RecordBatches of `batch_rows` each (the last may be shorter), sequence left out.

        records: of `record_schema`. Raises ValueError if its schema differs. One native call; protobuf fields may be
        appended to what is returned, for instance the sequence.
        """
        if not records.schema.equals(self.record_schema):
            raise ValueError(f"records have the schema\n{records.schema}\nnot that of {self.dataset.message_type}")
        rows = records.num_rows
        offsets = pa.array([*range(0, rows, batch_rows), rows] if rows else [0], pa.int32())
        lists = pa.ListArray.from_arrays(offsets, records.to_struct_array(), type=self._records_type)
        encoded = self._handler.record_batch_to_array(pa.record_batch([lists], schema=self._batch_schema))
        return list(encoded.to_pylist())


def _batch_type(files: FileDescriptorSet, message_type: str) -> Descriptor:
    pool = DescriptorPool()
    for file in files.file:
        pool.AddSerializedFile(file.SerializeToString())
    message = pool.FindMessageTypeByName(message_type)
    synthesized = FileDescriptorProto(
        name="bulkgrpc/synthesized.proto", package=_PACKAGE, syntax="proto3", dependency=[message.file.name]
    )
    synthesized.message_type.add(name="Batch").field.add(
        name="records",
        number=2,
        type=FieldDescriptorProto.TYPE_MESSAGE,
        label=FieldDescriptorProto.LABEL_REPEATED,
        type_name=f".{message_type}",
    )
    pool.AddSerializedFile(synthesized.SerializeToString())
    return pool.FindMessageTypeByName(f"{_PACKAGE}.Batch")


def rule_failure(said: str) -> str:
    """Return which rule cannot be evaluated, and why. said: protovalidate's `error evaluating ID: reason`."""
    rule, found, reason = said.removeprefix("error evaluating ").partition(": ")
    return f"rule {rule} cannot be evaluated: {reason}" if found else f"a rule cannot be evaluated: {said}"


def _cause(error: DecodeError) -> str:
    """Return what the parser says, without the name of the synthesized message."""
    return str(error).rpartition("': ")[2]
