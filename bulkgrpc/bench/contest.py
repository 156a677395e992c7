"""Who is measured side by side in `bench policies`: ways of our workers, and what a careful hand would write instead.

To measure another way of writing, add a line to `contestants`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from bulkgrpc.bench import orders, readings
from bulkgrpc.bench.model import Load, Rate
from bulkgrpc.datasets import sources
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.definition import Dataset, define
from bulkgrpc.model import JobCounts
from bulkgrpc.v1 import options_pb2

Batches = Callable[[BatchCodec, int, int, int], list[bytes]]
"""Encodes the records [first, first + rows) of a tenant: `readings.batches`, `orders.batches`."""
By = Literal["workers", "copy", "staging"]
"""workers: our drain. copy: bare COPY. staging: COPY to a temporary table, then INSERT … ON CONFLICT."""
SOME = 101
"""Every so manieth row is there already, or is refused: about 1 %. A prime number, for keys go round by 1000."""
WINDOW_S = 86_400
_OPTION: Any = options_pb2.dataset


@dataclass(frozen=True, slots=True)
class Contestant:
    """Somebody who writes the load.

    there: every so manieth key is in the table before; 0 is none. refused: a check constraint refuses every so manieth
    row. remembered: of a dataset with a window, what is known before: nothing, as many other records, of the
    window before, or the same ones. next_to: the name of the contestant whose rate is 1; ratio_min: what is aimed at
    then, 0 for nothing.
    """

    name: str
    by: By
    dataset: Dataset
    batches: Batches
    next_to: str
    ratio_min: float = 0.0
    there: int = 0
    refused: int = 0
    remembered: Literal["nothing", "others", "same"] = "nothing"

    def counts(self, load: Load) -> JobCounts:
        """Return what its jobs must count."""
        rejected = _every(self.refused, load)
        duplicate = 0 if self.dataset.conflict == "update" else _every(self.there, load)
        return JobCounts(load.rows, load.rows - duplicate - rejected, duplicate, rejected)


def _every(step: int, load: Load) -> int:
    return load.tenants * -(-load.tenant_rows // step) if step else 0


COPY, WIDE_COPY = "bare COPY BINARY", "bare COPY BINARY, wide"
NEW = "ignore: all keys new"
REMEMBERED = "dedupe: all records new"
IGNORE_BY_HAND = "by hand: DO NOTHING, all there"
UPDATE_BY_HAND = "by hand: DO UPDATE, all there"


def contestants() -> tuple[Contestant, ...]:
    """Return all, each after the one that it is measured next to."""
    new, some, there, update, bad = (
        _like_readings(name, "ignore" if name != "update" else "update")
        for name in ("new", "some", "there", "update", "bad")
    )
    first, later, again = (_like_readings(f"dedupe_{name}", "ignore", WINDOW_S) for name in ("first", "later", "again"))
    own = Path(__file__).with_name("policies.proto")
    compiled = sources.compile_proto(own)
    ruled, wide = (define(compiled, f"bench.v1.{name}") for name in ("RuledReading", "Order"))
    rows = readings.batches
    return (
        Contestant(COPY, "copy", new, rows, COPY),
        Contestant(NEW, "workers", new, rows, COPY, 0.75),
        Contestant("validation: 4 rules", "workers", ruled, rows, NEW, 0.65),
        Contestant(REMEMBERED, "workers", first, rows, NEW, 0.6),
        Contestant("dedupe: the same, a full window before", "workers", later, rows, NEW, remembered="others"),
        Contestant("dedupe: all records known", "workers", again, rows, NEW, there=1, remembered="same"),
        Contestant("refused by the table: 1 %", "workers", bad, rows, NEW, 0.25, refused=SOME),
        Contestant("ignore: 1 % of the keys there", "workers", some, rows, COPY, there=SOME),
        Contestant(IGNORE_BY_HAND, "staging", there, rows, COPY, there=1),
        Contestant("ignore: all keys there", "workers", there, rows, IGNORE_BY_HAND, 0.8, there=1),
        Contestant(UPDATE_BY_HAND, "staging", update, rows, COPY, there=1),
        Contestant("update: all keys there", "workers", update, rows, UPDATE_BY_HAND, 0.8, there=1),
        Contestant(WIDE_COPY, "copy", wide, orders.batches, WIDE_COPY),
        Contestant("wide: 20 fields, nested, arrays", "workers", wide, orders.batches, WIDE_COPY),
    )


def _like_readings(name: str, conflict: str, window_s: int = 0) -> Dataset:
    """Return the example dataset with a table of its own: what a worker remembers of one does not touch another."""
    files = FileDescriptorSet.FromString(sources.compile_proto(sources.proto_root() / "examples/v1/sensors.proto"))
    option = files.file[-1].message_type[0].options.Extensions[_OPTION]
    option.table = f"readings_{name}"
    if window_s:
        option.dedupe_window.seconds = window_s
    option.conflict = options_pb2.ConflictPolicy.Value(f"CONFLICT_POLICY_{conflict.upper()}")
    return define(files.SerializeToString(), "examples.v1.SensorReading")


@dataclass(frozen=True, slots=True)
class ContestResults:
    """Of each round the rate of each contestant, by name."""

    load: Load
    contestants: tuple[Contestant, ...]
    rounds: tuple[Mapping[str, Rate], ...]

    def rows_per_s(self, contestant: Contestant) -> float:
        """The median over the rounds."""
        return statistics.median(rates[contestant.name].rows_per_s for rates in self.rounds)

    def ratios(self, contestant: Contestant, to: str) -> Sequence[float]:
        """Of each round the rate, that of the contestant named `to` being 1."""
        return [rates[contestant.name].rows_per_s / rates[to].rows_per_s for rates in self.rounds]

    def ratio(self, contestant: Contestant) -> float:
        """The median over the rounds of the ratio to the one that it is next to."""
        return statistics.median(self.ratios(contestant, contestant.next_to))

    def met(self, contestant: Contestant) -> bool:
        """Whether the ratio is what is aimed at."""
        return self.ratio(contestant) >= contestant.ratio_min
