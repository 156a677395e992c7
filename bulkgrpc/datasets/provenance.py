"""Which columns of a dataset's table say which job wrote a row. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bulkgrpc.datasets.columns import Column, InvalidDataset
from bulkgrpc.v1 import options_pb2


@dataclass(frozen=True, slots=True)
class Provenance:
    """Names of columns. job: of the job's ID. sequence, write_time: of the batch and of the time, "" if not stored."""

    job: str
    sequence: str = ""
    write_time: str = ""

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns, in this order: rows that were written before they were added have nulls."""
        named = ((self.job, "uuid"), (self.sequence, "bigint"), (self.write_time, "timestamp with time zone"))
        return tuple(Column(name, "", type_, nullable=True) for name, type_ in named if name)

    def __str__(self) -> str:
        return ", ".join(column.name for column in self.columns)


def provenance_of(
    options: options_pb2.DatasetOptions, columns: Sequence[Column], check_name: Callable[[str, str], None]
) -> Provenance | None:
    """Return what the option `provenance` says, or None. columns: all others. Raises InvalidDataset."""
    if not options.HasField("provenance"):
        return None
    given = options.provenance
    if not given.job:
        raise InvalidDataset(
            "provenance.job",
            "provenance.job is not set: name the column that stores the ID of the job that wrote a row",
        )
    seen = {column.name: column.field for column in columns}
    for field in ("job", "sequence", "write_time"):
        name, where = getattr(given, field), f"provenance.{field}"
        if not name:
            continue
        check_name(name, where)
        if name in seen:
            other = f"field {seen[name]}" if seen[name] else "another column of the service"
            raise InvalidDataset(
                where, f"{where} and {other} would both be column {name}: give one of them another name"
            )
        seen[name] = where
    return Provenance(given.job, given.sequence, given.write_time)
