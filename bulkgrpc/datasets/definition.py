"""What a dataset is, read from a message's descriptor and its `(bulkgrpc.v1.dataset)` option."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet, MessageOptions
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError

from bulkgrpc import limits, model
from bulkgrpc.datasets.binding import ExistingTable, check_column, existing_table, quoted
from bulkgrpc.datasets.columns import KEY_TYPES, TENANT, Column, InvalidDataset, check_new_name, columns_of
from bulkgrpc.datasets.operations import Operation, operation_of
from bulkgrpc.datasets.periods import PartitionPeriod
from bulkgrpc.datasets.provenance import Provenance, provenance_of
from bulkgrpc.v1 import options_pb2

ConflictPolicy = Literal["ignore", "update", "reject", "append"]

_OPTION: Any = options_pb2.dataset  # protoc types its extensions more loosely than the runtime
_CONFLICT_POLICIES: dict[int, ConflictPolicy] = {
    options_pb2.CONFLICT_POLICY_UNSPECIFIED: "ignore",
    options_pb2.CONFLICT_POLICY_IGNORE: "ignore",
    options_pb2.CONFLICT_POLICY_UPDATE: "update",
    options_pb2.CONFLICT_POLICY_REJECT: "reject",
    options_pb2.CONFLICT_POLICY_APPEND: "append",
}

_RESERVED_TABLES = frozenset({"alembic_version"})
"""Tables of the service in the schema of the datasets' tables; all others are in the schema `bulk`."""


@dataclass(frozen=True, slots=True)
class TimePartitions:
    """How a table is partitioned by time. column: a key column. period: of one partition."""

    column: str
    period: PartitionPeriod


@dataclass(frozen=True, slots=True)
class Dataset:
    """A message type bound to a table.

    name: the dataset's, and the table's if the service created it. key: names of the key columns after the tenant's;
    empty exactly if the policy is append. columns: the table's, the first of them the tenant's if the table has one.
    descriptors: a serialized FileDescriptorSet, imports before importers. conflict_policy: what happens to a record
    whose key is in the table. dedupe_window_s: how long a record's bytes are remembered, 0 if they are not. lanes:
    ordered paths of a job. time_to_live_s: how long a batch may wait if its job sets no time to live, 0 if there is no
    limit. hash_partitions: of the table, 0 if it is not partitioned by the hash of its key. time_partitions: None if it
    is not partitioned by time. database_collation: whether texts of the key have the database's collation in a table
    that is created now; tables of earlier releases have it anyway. operation: what says which records delete their
    rows, None if none does. existing: the table that the dataset is bound to, None if the service creates it.
    provenance: the columns that say which job wrote a row, the last of `columns`; None if none do.
    schema_digest: of the definition, as it was registered; empty if it is not known.
    """

    name: str
    version: int
    message_type: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    descriptors: bytes
    conflict_policy: ConflictPolicy = "ignore"
    dedupe_window_s: float = 0.0
    lanes: int = 1
    time_to_live_s: float = 0.0
    hash_partitions: int = 0
    time_partitions: TimePartitions | None = None
    database_collation: bool = False
    operation: Operation | None = None
    existing: ExistingTable | None = None
    provenance: Provenance | None = None
    schema_digest: bytes = field(default=b"", compare=False)

    @property
    def primary_key(self) -> tuple[str, ...]:
        """The table's key columns, in order; none if its policy is append."""
        if not self.key:
            return ()
        return (self.tenant_column, *self.key) if self._tenant_in_key else self.key

    @property
    def tenant_column(self) -> str:
        """The column that stores the tenant, "" if none does."""
        return TENANT if self.existing is None else self.existing.tenant_column

    @property
    def field_columns(self) -> tuple[Column, ...]:
        """The columns of fields: all but the tenant's and those of the provenance."""
        return tuple(column for column in self.columns if column.field)

    @property
    def relation(self) -> str:
        """The table's name as in the catalog, without its schema."""
        return self.name if self.existing is None else self.existing.table

    @property
    def table(self) -> str:
        """The table's name in messages: as in SQL, without the schema if the service created it."""
        return quoted(self.name) if self.existing is None else self.existing.text

    @property
    def _tenant_in_key(self) -> bool:
        return self.existing is None or self.existing.tenant_in_key


def define(descriptors: bytes, message_type: str, version: int = 1) -> Dataset:
    """Read a dataset from a serialized FileDescriptorSet.

    Raises InvalidDataset naming the field at fault and the way out.
    """
    descriptor = find_message(descriptors, message_type)
    options = _options(descriptor)
    name = options.table or _snake_case(descriptor.name)
    if not model.is_dataset(name):
        raise InvalidDataset(
            "table", f"table {name!r} is no valid name: a letter, then up to 62 of a-z, 0-9 and _, all lower case"
        )
    existing = existing_table(options, name)
    if existing is None and name in _RESERVED_TABLES:
        raise InvalidDataset("table", f"table {name} is the service's own: specify another with `table`")
    operation = operation_of(options, descriptor)
    columns = _columns(descriptor, existing, operation)
    provenance = provenance_of(options, columns, check_column if existing is not None else check_new_name)
    if provenance is not None:
        columns += provenance.columns
    if len(columns) > limits.COLUMNS_MAX:
        raise InvalidDataset("", f"{len(columns)} columns; a table takes at most {limits.COLUMNS_MAX}")
    conflict_policy = _conflict_policy(options)
    key = () if conflict_policy == "append" else _key(options, columns)
    return Dataset(
        name,
        version,
        message_type,
        key,
        columns,
        descriptors,
        conflict_policy,
        dedupe_window_s=_dedupe_window_s(options),
        lanes=_lanes(options, conflict_policy),
        time_to_live_s=_time_to_live_s(options),
        hash_partitions=_hash_partitions(options),
        time_partitions=_time_partitions(options, columns),
        database_collation=options.database_collation,
        operation=operation,
        existing=existing,
        provenance=provenance,
    )


def _columns(descriptor: Descriptor, existing: ExistingTable | None, operation: Operation | None) -> tuple[Column, ...]:
    tenant = TENANT if existing is None else existing.tenant_column
    found = columns_of(descriptor) if existing is None else columns_of(descriptor, tenant, check_column)
    stored = tuple(column for column in found if operation is None or column.field != operation.field)
    for column in stored if existing is not None else ():
        if column.index or column.brin_index:
            raise InvalidDataset(
                column.field,
                f"field {column.field}: `{'index' if column.index else 'brin_index'}` is of a table that the service "
                "creates: leave it out, and create the index yourself",
            )
    return (Column(tenant, "", "text", nullable=False), *stored) if tenant else stored


def find_message(descriptors: bytes, message_type: str) -> Descriptor:
    """Return the descriptor of a message in a serialized FileDescriptorSet, from a pool of its own.

    Raises InvalidDataset if the set is not complete or the message is not in it.
    """
    pool = DescriptorPool()
    try:
        files = FileDescriptorSet.FromString(descriptors)
        for file in files.file:
            pool.AddSerializedFile(file.SerializeToString())
        return pool.FindMessageTypeByName(message_type)
    except KeyError as error:
        raise InvalidDataset("message_type", f"message {message_type!r} is not in the descriptors") from error
    except (DecodeError, TypeError) as error:
        raise InvalidDataset(
            "descriptors", f"not a complete FileDescriptorSet, imports before importers: {error}"
        ) from error


def _options(descriptor: Descriptor) -> options_pb2.DatasetOptions:
    # The pool is not the generated code's: read the extension by parsing the options again with our class.
    parsed = MessageOptions.FromString(descriptor.GetOptions().SerializeToString())
    if not parsed.HasExtension(_OPTION):
        raise InvalidDataset(
            "message_type",
            f"message {descriptor.full_name} has no option (bulkgrpc.v1.dataset): "
            'add `option (bulkgrpc.v1.dataset) = {table: "…" key: ["…"]};`',
        )
    options: options_pb2.DatasetOptions = parsed.Extensions[_OPTION]
    return options


def _conflict_policy(options: options_pb2.DatasetOptions) -> ConflictPolicy:
    if options.conflict_policy not in _CONFLICT_POLICIES:
        raise InvalidDataset(
            "conflict_policy",
            f"conflict policy {options.conflict_policy} is not known: ignore, update, reject or append",
        )
    found = _CONFLICT_POLICIES[options.conflict_policy]
    if found == "append" and options.key:
        raise InvalidDataset(
            "key",
            f"{len(options.key)} key fields, and CONFLICT_POLICY_APPEND is of a dataset without a key: leave `key` "
            "out, or set conflict_policy to CONFLICT_POLICY_IGNORE, _UPDATE or _REJECT",
        )
    return found


def _lanes(options: options_pb2.DatasetOptions, conflict_policy: ConflictPolicy) -> int:
    if not 0 <= options.lanes <= limits.LANES_MAX:
        raise InvalidDataset("lanes", f"{options.lanes} lanes; a job has 1 to {limits.LANES_MAX}, or 0 for one")
    if options.lanes > 1 and conflict_policy == "update":
        raise InvalidDataset(
            "lanes",
            f"{options.lanes} lanes are not possible with conflict policy update: batches of different lanes have no "
            "order, and an older record could replace a newer one of its key: omit lanes, or set conflict_policy to "
            "CONFLICT_POLICY_IGNORE or CONFLICT_POLICY_REJECT",
        )
    return options.lanes or 1


def _dedupe_window_s(options: options_pb2.DatasetOptions) -> float:
    if not options.HasField("dedupe_window"):
        return 0.0
    seconds = options.dedupe_window.seconds + options.dedupe_window.nanos / 1e9
    if not limits.DEDUPE_WINDOW_S_MIN <= seconds <= limits.DEDUPE_WINDOW_S_MAX:
        raise InvalidDataset("dedupe_window", f"dedupe_window of {seconds} s is not within 1 s to 31 days")
    return float(seconds)


def _time_to_live_s(options: options_pb2.DatasetOptions) -> float:
    if not options.HasField("time_to_live"):
        return 0.0
    seconds = options.time_to_live.seconds + options.time_to_live.nanos / 1e9
    if not limits.TIME_TO_LIVE_S_MIN <= seconds <= limits.TIME_TO_LIVE_S_MAX:
        raise InvalidDataset("time_to_live", f"time_to_live of {seconds} s is not within 1 s to 366 days")
    return seconds


def _hash_partitions(options: options_pb2.DatasetOptions) -> int:
    if options.hash_partitions != 0 and not 2 <= options.hash_partitions <= limits.HASH_PARTITIONS_MAX:
        raise InvalidDataset(
            "hash_partitions",
            f"{options.hash_partitions} hash_partitions; 2 to {limits.HASH_PARTITIONS_MAX}, or 0 for none",
        )
    if options.hash_partitions and options.conflict_policy == options_pb2.CONFLICT_POLICY_APPEND:
        raise InvalidDataset(
            "hash_partitions",
            f"{options.hash_partitions} hash_partitions are by the hash of the key, and CONFLICT_POLICY_APPEND has no "
            "key: leave them out, or set partition_by_time",
        )
    return int(options.hash_partitions)


_PERIODS = {
    options_pb2.PARTITION_PERIOD_DAY: PartitionPeriod.DAY,
    options_pb2.PARTITION_PERIOD_WEEK: PartitionPeriod.WEEK,
    options_pb2.PARTITION_PERIOD_MONTH: PartitionPeriod.MONTH,
}


def _time_partitions(options: options_pb2.DatasetOptions, columns: tuple[Column, ...]) -> TimePartitions | None:
    if not options.HasField("partition_by_time"):
        return None
    asked = options.partition_by_time
    if options.hash_partitions:
        raise InvalidDataset("partition_by_time", "partition_by_time and hash_partitions: a table has one of them")
    if asked.period not in _PERIODS:
        raise InvalidDataset(
            "partition_by_time.period", "partition_by_time.period is not set: PARTITION_PERIOD_DAY, _WEEK or _MONTH"
        )
    column = next((column for column in columns[1:] if column.field == asked.field), None)
    if options.conflict_policy == options_pb2.CONFLICT_POLICY_APPEND:
        if column is None:
            raise InvalidDataset(
                "partition_by_time.field",
                f"partition_by_time.field {asked.field!r} is no field with a column: name one that is a time or a date",
            )
    elif column is None or asked.field not in options.key:
        raise InvalidDataset(
            "partition_by_time.field",
            f"partition_by_time.field {asked.field!r} is no key field: the primary key of a table that is partitioned "
            "has to contain what it is partitioned by: add the field to `key`",
        )
    if column.type not in ("timestamp with time zone", "date"):
        raise InvalidDataset(
            "partition_by_time.field",
            f"partition_by_time.field {asked.field} is a {column.type}, no time and no date: name a "
            "google.protobuf.Timestamp, a google.type.Date, or a string with COLUMN_TYPE_TIMESTAMPTZ or _DATE",
        )
    return TimePartitions(column.name, _PERIODS[asked.period])


def _key(options: options_pb2.DatasetOptions, columns: tuple[Column, ...]) -> tuple[str, ...]:
    if not 1 <= len(options.key) <= limits.KEY_COLUMNS_MAX:
        raise InvalidDataset(
            "key",
            f"{len(options.key)} key fields; name 1 to {limits.KEY_COLUMNS_MAX} that identify a record, or set "
            "conflict_policy to CONFLICT_POLICY_APPEND if nothing does",
        )
    by_field = {column.field: column for column in columns if column.field}
    for name in options.key:
        if name not in by_field:
            raise InvalidDataset("key", f"key field {name!r} is no field of the message")
        if by_field[name].type not in KEY_TYPES:
            raise InvalidDataset("key", f"key field {name!r} of type {by_field[name].type} cannot identify a record")
    if len(set(options.key)) != len(options.key):
        raise InvalidDataset("key", "a key field is named twice")
    return tuple(by_field[name].name for name in options.key)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
