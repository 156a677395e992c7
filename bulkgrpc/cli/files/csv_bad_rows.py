"""Finds the rows of a CSV file that DuckDB cannot read, and copies the file without them."""

from __future__ import annotations

import csv
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import duckdb
import numpy as np

from bulkgrpc.cli.bad_row import BadRow
from bulkgrpc.cli.files.bad_rows import Numbers
from bulkgrpc.cli.files.errors import FileError
from bulkgrpc.cli.files.sources import Source, copied

_REJECTED = """
SELECT line_byte_position - 1, csv_line, min_by(error_type::VARCHAR, coalesce(column_idx, 0))
FROM reject_errors GROUP BY ALL ORDER BY 1
"""
_REASONS = {
    "MISSING COLUMNS": "it has too few cells",
    "TOO MANY COLUMNS": "it has too many cells",
    "UNQUOTED VALUE": "text follows a closing quote",
    "INVALID ENCODING": "the text is not UTF-8",
    "LINE SIZE OVER MAXIMUM": "it is too long",
}
_SCAN_BYTES = 16 * 1024 * 1024
_NEWLINE, _RETURN = 10, 13


@dataclass(frozen=True, slots=True)
class ReadableRows:
    """The rows that can be read, and the others.

    source: a file with the readable rows only. bad: the others, in order. before: rows of `source` before each of them.
    """

    source: Source
    bad: tuple[BadRow, ...]
    before: Numbers

    def numbers(self, start: int, stop: int) -> Numbers:
        """Return the numbers in the whole file, from 1, of the rows [start, stop) of `source`."""
        rows = np.arange(start, stop)
        numbers: Numbers = rows + 1 + np.searchsorted(self.before, rows, side="right")
        return numbers


@dataclass(frozen=True, slots=True)
class Marks:
    """What divides a file into rows and cells. quote, escape: "" for none, and for the quote."""

    delimiter: str
    quote: str
    escape: str
    header_lines: int


def readable(source: Source, query: str, marks: Marks) -> ReadableRows | None:
    """Separate the rows that DuckDB reads from the others; None if it reads all of them.

    query: reads every cell and stores rejects. Raises FileError if a quote is not closed: the rest of the file would be
    one row.
    """
    with duckdb.connect(config={"threads": 2}) as connection:
        connection.sql(query).fetchall()
        found = connection.sql(_REJECTED).fetchall()
    if not found:
        return None
    spans, rows = [], []
    with source.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.find(b"\n") == -1 and data.find(b"\r") != -1:
            raise FileError(
                f"{source.name}: its lines end with carriage returns only, and some have wrong cells: "
                "--on-bad-row reject needs line feeds, for example by `tr '\\r' '\\n'`"
            )
        line, counted = 1, 0
        for position, text, kind in found:
            span = _span(data, position, text)
            line += lines_between(data, counted, span[0])
            counted = span[0]
            if kind == "UNQUOTED VALUE" and data.find(b"\n", *span) != -1:
                raise FileError(
                    f"{source.name}: line {line:,}: the quote is not closed: close it, or read the file with --quote "
                    '""; --on-bad-row reject cannot separate the rest of the file into rows'
                )
            spans.append(span)
            shown = data[slice(*span)].decode(errors="replace")
            rows.append((f"line {line:,}: {_REASONS.get(kind, kind.lower())}", shown))
        kept = copied(source.name, lambda copy: _copy_without(data, spans, copy))
    removed = np.cumsum([0, *(stop + 1 - start for start, stop in spans)])[:-1]
    starts = np.array([start for start, _ in spans]) - removed
    before = _rows_before(kept.path, starts, marks)
    bad = tuple(
        BadRow(int(count) + index + 1, "", reason, text)
        for index, (count, (reason, text)) in enumerate(zip(before, rows, strict=True))
    )
    return ReadableRows(kept, bad, before)


def lines_between(data: mmap.mmap, start: int, stop: int) -> int:
    """Count the line breaks in a part of a file. DuckDB's own numbers of lines leave out blank ones."""
    parts = range(start, stop, _SCAN_BYTES)
    return sum(data[part : min(part + _SCAN_BYTES, stop)].count(b"\n") for part in parts)


def _span(data: mmap.mmap, position: int, text: str) -> tuple[int, int]:
    """Return where a row starts, and the line break after it. DuckDB's position may be that of a break before it."""
    start = position
    while start < len(data) and data[start] in (_NEWLINE, _RETURN):
        start += 1
    end = data.find(b"\n", start + len(text.strip("\r\n").encode()))
    return start, len(data) if end == -1 else end


def _copy_without(data: mmap.mmap, spans: list[tuple[int, int]], copy: IO[bytes]) -> None:
    start = 0
    for bad_start, bad_stop in [*spans, (len(data), len(data))]:
        while start < bad_start:
            stop = min(bad_start, start + _SCAN_BYTES)
            copy.write(data[start:stop])
            start = stop
        start = bad_stop + 1


def _rows_before(path: Path, starts: Numbers, marks: Marks) -> Numbers:
    """Count the rows that end before each offset: line breaks outside of quotes, without those of blank lines."""
    found = None if marks.escape not in {"", marks.quote} else _counted(path, starts, marks)
    return _counted_one_by_one(path, starts, marks) if found is None else found


def _counted(path: Path, starts: Numbers, marks: Marks) -> Numbers | None:
    """Count rows without reading cells. None if a quote is within a cell that does not start with one."""
    counts = np.zeros(len(starts), np.int64)
    around = [ord(mark) for mark in ("\n", "\r", marks.delimiter, marks.quote) if mark]
    with path.open("rb") as file:
        for _ in range(marks.header_lines):
            file.readline()
        done, inside, before = file.tell(), 0, [_NEWLINE, _NEWLINE]
        while data := file.read(_SCAN_BYTES):
            content = np.frombuffer(data, np.uint8)
            whole = np.concatenate([np.array(before, np.uint8), content])
            previous, earlier = whole[1:-1], whole[:-2]
            breaks = content == _NEWLINE
            if marks.quote:
                quotes = content == ord(marks.quote)
                depth = np.cumsum(quotes) + inside
                if (quotes & (depth % 2 == 1) & ~np.isin(previous, around)).any():
                    return None
                breaks &= depth % 2 == 0
                inside = int(depth[-1]) % 2
            blank = (previous == _NEWLINE) | ((previous == _RETURN) & (earlier == _NEWLINE))
            counts += np.searchsorted(np.flatnonzero(breaks & ~blank) + done, starts)
            done, before = done + len(data), whole[-2:].tolist()
    return counts


def _counted_one_by_one(path: Path, starts: Numbers, marks: Marks) -> Numbers:
    """Count rows with Python's reader, which divides quotes as DuckDB does. Rare, and slow: a million rows a second."""
    with path.open("rb") as file:
        for _ in range(marks.header_lines):
            file.readline()
        doubled = marks.escape in {"", marks.quote}
        reader = csv.reader(
            (line.decode(errors="replace") for line in iter(file.readline, b"")),
            delimiter=marks.delimiter,
            quotechar=marks.quote or None,
            quoting=csv.QUOTE_MINIMAL if marks.quote else csv.QUOTE_NONE,
            doublequote=doubled,
            escapechar=None if doubled else marks.escape,
        )
        ends = [file.tell() for row in reader if row]
    numbers: Numbers = np.searchsorted(np.array(ends, np.int64), starts, side="right")
    return numbers
