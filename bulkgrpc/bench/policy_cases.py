"""The cases of `bench policies`: the workers' ways of writing, and what a program without bulkgrpc does instead.

To measure another way of writing, add a line to `cases`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from bulkgrpc.bench import readings, wide_orders
from bulkgrpc.bench.model import Load, Rate
from bulkgrpc.datasets import sources
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.definition import Dataset, define
from bulkgrpc.model import JobCounts
from bulkgrpc.v1 import options_pb2

Batches = Callable[[BatchCodec, int, int, int], list[bytes]]
"""Encodes the records [first, first + rows) of a tenant: `readings.batches`, `wide_orders.batches`."""
Writer = Literal["workers", "copy", "staging"]
"""workers: a drain. copy: a bare COPY. staging: COPY into a temporary table, then INSERT … ON CONFLICT."""
ONE_ROW_IN = 101
"""One row in 101, about 1 %, exists already or is rejected. A prime number, since keys repeat every 1000 rows."""
WINDOW_S = 86_400
_OPTION: Any = options_pb2.dataset


@dataclass(frozen=True, slots=True)
class PolicyCase:
    """One way of writing the load.

    existing_one_in: one key in so many exists before; 0: none. rejected_one_in: a check constraint rejects one row in
    so many; 0: none. remembered: what a dataset with a dedupe window knows before: nothing, as many other records in
    the previous generation of hashes, or the same records. baseline: name of the case whose rate is 1. ratio_min: the
    target ratio to the baseline; 0: none.
    """

    name: str
    writer: Writer
    dataset: Dataset
    batches: Batches
    baseline: str
    ratio_min: float = 0.0
    existing_one_in: int = 0
    rejected_one_in: int = 0
    remembered: Literal["nothing", "others", "same"] = "nothing"

    def counts(self, load: Load) -> JobCounts:
        """Return the exact counts that its jobs must have in all."""
        rejected = _rows_of(self.rejected_one_in, load)
        duplicate = 0 if self.dataset.conflict_policy == "update" else _rows_of(self.existing_one_in, load)
        return JobCounts(load.rows, load.rows - duplicate - rejected, duplicate, rejected)


def _rows_of(one_in: int, load: Load) -> int:
    return load.tenants * -(-load.tenant_rows // one_in) if one_in else 0


COPY, WIDE_COPY = "bare COPY BINARY", "bare COPY BINARY, wide"
NEW = "ignore: all keys new"
DEDUPE_NEW = "dedupe: all records new"
IGNORE_BY_HAND = "by hand: DO NOTHING, all keys exist"
APPEND = "append: no key"
UPDATE_BY_HAND = "by hand: DO UPDATE, all keys exist"


def cases() -> tuple[PolicyCase, ...]:
    """Return all cases, each after its baseline."""
    new, some, existing, update, rejecting, refusing = (
        _readings_as(name, "ignore" if name != "update" else "update")
        for name in ("new", "some", "existing", "update", "rejecting", "refusing")
    )
    appended = _readings_as("appended", "append")
    first, later, again = (_readings_as(f"dedupe_{name}", "ignore", WINDOW_S) for name in ("first", "later", "again"))
    compiled = sources.compile_proto(Path(__file__).with_name("policies.proto"))
    ruled, wide = (define(compiled, f"bench.v1.{name}") for name in ("RuledReading", "Order"))
    rows = readings.batches
    return (
        PolicyCase(COPY, "copy", new, rows, COPY),
        PolicyCase(NEW, "workers", new, rows, COPY, 0.75),
        PolicyCase(APPEND, "workers", appended, rows, NEW, 2.0),
        PolicyCase("validation: 4 rules", "workers", ruled, rows, NEW, 0.65),
        PolicyCase(DEDUPE_NEW, "workers", first, rows, NEW, 0.6),
        PolicyCase("dedupe: all records new, window full", "workers", later, rows, NEW, remembered="others"),
        PolicyCase("dedupe: all records known", "workers", again, rows, NEW, existing_one_in=1, remembered="same"),
        PolicyCase("rejected by the table: 1 %", "workers", rejecting, rows, NEW, 0.9, rejected_one_in=ONE_ROW_IN),
        PolicyCase("rejected by the table: all", "workers", refusing, rows, NEW, 0.5, rejected_one_in=1),
        PolicyCase("ignore: 1 % of the keys exist", "workers", some, rows, COPY, existing_one_in=ONE_ROW_IN),
        PolicyCase(IGNORE_BY_HAND, "staging", existing, rows, COPY, existing_one_in=1),
        PolicyCase("ignore: all keys exist", "workers", existing, rows, IGNORE_BY_HAND, 0.8, existing_one_in=1),
        PolicyCase(UPDATE_BY_HAND, "staging", update, rows, COPY, existing_one_in=1),
        PolicyCase("update: all keys exist", "workers", update, rows, UPDATE_BY_HAND, 0.8, existing_one_in=1),
        PolicyCase(WIDE_COPY, "copy", wide, wide_orders.batches, WIDE_COPY),
        PolicyCase("wide: 20 fields, nested, arrays", "workers", wide, wide_orders.batches, WIDE_COPY),
    )


def _readings_as(name: str, policy: str, window_s: int = 0) -> Dataset:
    """Return the example dataset with its own table, so that what workers remember of one case affects no other."""
    files = FileDescriptorSet.FromString(sources.compile_proto(sources.proto_root() / "examples/v1/sensors.proto"))
    option = files.file[-1].message_type[0].options.Extensions[_OPTION]
    option.table = f"readings_{name}"
    if window_s:
        option.dedupe_window.seconds = window_s
    if policy == "append":
        option.ClearField("key")
    option.conflict_policy = options_pb2.ConflictPolicy.Value(f"CONFLICT_POLICY_{policy.upper()}")
    return define(files.SerializeToString(), "examples.v1.SensorReading")


@dataclass(frozen=True, slots=True)
class PolicyResults:
    """The rate of each case in each round. rounds: rates by case name."""

    load: Load
    cases: tuple[PolicyCase, ...]
    rounds: tuple[Mapping[str, Rate], ...]

    def rows_per_s(self, case: PolicyCase) -> float:
        """The median rate of the rounds."""
        return statistics.median(rates[case.name].rows_per_s for rates in self.rounds)

    def ratios(self, case: PolicyCase) -> Sequence[float]:
        """The ratio to the baseline in each round."""
        return [rates[case.name].rows_per_s / rates[case.baseline].rows_per_s for rates in self.rounds]

    def ratio(self, case: PolicyCase) -> float:
        """The median ratio to the baseline."""
        return statistics.median(self.ratios(case))

    def met(self, case: PolicyCase) -> bool:
        """Whether the ratio reaches the target."""
        return self.ratio(case) >= case.ratio_min
