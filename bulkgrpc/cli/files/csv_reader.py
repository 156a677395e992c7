"""Reads CSV files with DuckDB: every cell as the text that the file has, nothing guessed but the delimiter.

DuckDB's types and its detection of dialects are off, so that the same file and options always give the same rows.
"""

from __future__ import annotations

import csv
import io
import mmap
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import duckdb
import pyarrow as pa

from bulkgrpc.cli.files.csv_bad_rows import Marks, ReadableRows, lines_between, readable
from bulkgrpc.cli.files.errors import FileError
from bulkgrpc.cli.files.sources import Block, Source, check_text
from bulkgrpc.tabular.errors import shown

BLOCK_ROWS = 50_000
LINE_BYTES_MAX = 4 * 1024 * 1024
"""Bytes of a row. A larger row has no place in a batch either."""
_TOO_LONG = f"it is longer than {LINE_BYTES_MAX:,} bytes: is a quote not closed?"
# Python's reader, which reads the header and explains errors, has a limit of its own.
csv.field_size_limit(2 * LINE_BYTES_MAX)
_DELIMITERS = ",;\t|"
_NAMES = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}
_HEADER_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Dialect:
    r"""How the text of a CSV file is divided into cells.

    delimiter: "" for the most frequent of comma, semicolon, tab and vertical bar in the header. quote: "" if cells are
    never quoted. escape: what precedes a quote within a quoted cell; "" for the quote itself. skip_rows: lines before
    the header. header: whether the first row has the names. columns: names to use instead; needed without a header.
    nulls: texts of cells without quotes that mean null.
    """

    delimiter: str = ""
    quote: str = '"'
    escape: str = ""
    skip_rows: int = 0
    header: bool = True
    columns: tuple[str, ...] = ()
    nulls: tuple[str, ...] = ("", "NA", r"\N")


class CsvFile:
    """A CSV file whose header was read. names: of its columns; `column_3` for a third column without a name."""

    def __init__(self, source: Source, dialect: Dialect, *, reject: bool = False) -> None:
        check_text(source)
        self._reject = reject
        self._source = source
        self._dialect = dialect = _without_blank_lines(source, _with_excels_line(source, dialect))
        self._row_bytes = 0.0  # of a row on average; 0 if it is not known yet
        first, _ = _first_line(source, dialect)
        self._delimiter = dialect.delimiter or _most_frequent(first, dialect.quote)
        self.names = self._names()

    def blocks(self, verbatim: Iterable[str] = ()) -> Iterator[Block]:
        """Yield the file's rows in order, every column as text, null where a cell without quotes is a null text.

        verbatim: columns in which no text means null. Raises FileError for a row with too few or too many cells, text
        after a quote, or text that is not UTF-8, unless bad rows are rejected: then the first block has all of them.
        """
        try:
            apart = self._apart() if self._reject else None
        except duckdb.Error as error:
            raise self._located(error) from None
        if apart is not None:
            self._source = apart.source
            yield Block(pa.table({}), 0, bad=apart.bad)
        rows = 0
        for block in self._blocks(verbatim):
            numbers = None if apart is None else apart.numbers(rows, rows + len(block.table))
            yield replace(block, numbers=numbers)
            rows += len(block.table)

    def _apart(self) -> ReadableRows | None:
        counts = ", ".join(f"count(c{number})" for number in range(len(self.names)))
        query = self._query(counts, store_rejects=True, rejects_limit=0)
        dialect = self._dialect
        lines = dialect.skip_rows + dialect.header
        return readable(self._source, query, Marks(self._delimiter, dialect.quote, dialect.escape, lines))

    def _blocks(self, verbatim: Iterable[str]) -> Iterator[Block]:
        kept = [number for number, name in enumerate(self.names) if name in set(verbatim)]
        others = [number for number in range(len(self.names)) if number not in kept]
        rows = 0
        try:
            # DuckDB has one list of null texts for all columns: it reads the columns with none in a second pass.
            passes = [self._arrays(others, self._nulls()), self._arrays(kept, ())]
            for parts in zip(*(one for one in passes if one is not None), strict=True):
                columns = {number: column for part in parts for number, column in part.items()}
                table = pa.table([columns[number] for number in range(len(self.names))], self.names)
                rows += len(table)
                yield Block(table, min(self._source.size_bytes, self._bytes_of(rows)))
        except (duckdb.Error, OSError) as error:
            raise self._located(error) from None

    def _nulls(self) -> tuple[str, ...]:
        """Return the null texts that a cell can have in this dialect: DuckDB refuses others."""
        marks = {self._delimiter, self._dialect.quote, self._dialect.escape} - {""}
        return tuple(text for text in self._dialect.nulls if not marks & set(text))

    def _arrays(self, numbers: list[int], nulls: tuple[str, ...]) -> Iterator[dict[int, pa.Array]] | None:
        """Return the values of some columns in blocks of BLOCK_ROWS; None if there are no columns."""
        if not numbers:
            return None
        names = [f"c{number}" for number in numbers]
        never_null = [] if nulls else names
        query = self._query(", ".join(names), nullstr=list(nulls) or [""], force_not_null=never_null)

        def read() -> Iterator[dict[int, pa.Array]]:
            # The order of rows is the file's, however many threads read.
            with duckdb.connect(config={"threads": 2, "preserve_insertion_order": True}) as connection:
                for batch in connection.sql(query).to_arrow_reader(BLOCK_ROWS):
                    yield dict(zip(numbers, batch.columns, strict=True))

        return read()

    def _query(self, selected: str, **more: object) -> str:
        dialect = self._dialect
        options: dict[str, object] = {
            "auto_detect": False,
            "delim": self._delimiter,
            "quote": dialect.quote,
            "escape": dialect.escape or dialect.quote,
            "header": dialect.header,
            "skip": dialect.skip_rows,
            "columns": {f"c{number}": "VARCHAR" for number in range(len(self.names))},
            "strict_mode": True,
            "allow_quoted_nulls": False,
            "max_line_size": LINE_BYTES_MAX,
            **{name: value for name, value in more.items() if value != []},
        }
        listed = ", ".join(f"{name} = {_literal(value)}" for name, value in options.items())
        return f"SELECT {selected} FROM read_csv({_literal(str(self._source.path))}, {listed})"  # noqa: S608 — literals

    def _names(self) -> list[str]:
        first = next(iter(self._records()), None)
        if first is None:
            raise FileError(f"{self._source.name}: the file is empty")
        names = list(self._dialect.columns)
        if not names:
            if not self._dialect.header:
                raise FileError(f"{self._source.name}: a file without a header needs --columns with a name for each")
            names = [name.strip() or f"column_{number}" for number, name in enumerate(first, 1)]
        elif len(names) != len(first):
            raise FileError(f"{self._source.name}: --columns has {len(names)} names; the first row has {len(first)}")
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise FileError(
                f"{self._source.name}: the header names column {repeated[0]} twice: give every column a name of its "
                "own with --columns"
            )
        return names

    def _records(self) -> Iterator[list[str]]:
        """Yield the records from the first row on, as Python's reader sees them. For the header and for errors."""
        dialect = self._dialect
        with self._source.path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            for _ in range(dialect.skip_rows):
                file.readline()
            head = io.StringIO(file.read(_HEADER_BYTES), newline="")
            rows = csv.reader(
                head,
                delimiter=self._delimiter,
                quotechar=dialect.quote or None,
                quoting=csv.QUOTE_MINIMAL if dialect.quote else csv.QUOTE_NONE,
                doublequote=dialect.escape in {"", dialect.quote},
                escapechar=dialect.escape if dialect.escape not in {"", dialect.quote} else None,
            )
            try:
                yield from (row for row in rows if row)
            except csv.Error as error:
                raise FileError(f"{self._source.name}: the header cannot be read: {error}") from None

    def _bytes_of(self, rows: int) -> int:
        """Estimate the offset after some rows: DuckDB does not report it."""
        if not self._row_bytes:
            with self._source.path.open("rb") as file:
                head = file.read(_HEADER_BYTES)
            self._row_bytes = max(1.0, len(head) / max(1, head.count(b"\n")))
        return int(rows * self._row_bytes)

    def _located(self, error: Exception) -> FileError:
        """Return an error with row and column. Reads the file again: DuckDB lists the rows that it cannot read."""
        with duckdb.connect(config={"threads": 1}) as connection:
            query = self._query("count(*)", store_rejects=True)
            try:
                connection.sql(query).fetchall()
                found = connection.sql(
                    "SELECT line_byte_position, column_idx, error_type::VARCHAR FROM reject_errors "
                    "ORDER BY line_byte_position, column_idx LIMIT 1"
                ).fetchall()
            except duckdb.Error:
                found = []
        if not found:
            return FileError(f"{self._source.name}: {_cause(str(error), self._line(str(error)))}")
        position, column, kind = found[0]
        number = self._rows_before(position - 1) + 1
        line = self._line_at(position - 1)
        if kind == "LINE SIZE OVER MAXIMUM":
            return FileError(f"{self._source.name}: row {number:,} (line {line:,} of the file): {_TOO_LONG}")
        place = f"{self._source.name}: row {number:,} (the first record is row 1; line {line:,} of the file)"
        if kind == "UNQUOTED VALUE":
            name = self.names[min(max(column, 1), len(self.names)) - 1]
            return FileError(
                f"{place}, column {name}: the quote is not closed, or text follows it: close the quote, write a quote "
                'within a cell twice, or read the file with --quote ""'
            )
        return FileError(f"{place}: {self._wrong_count(position - 1)}")

    def _wrong_count(self, position: int) -> str:
        with self._source.path.open("rb") as file:
            file.seek(position)
            text = file.readline(LINE_BYTES_MAX).decode(errors="replace")
        cells = next(csv.reader([text], delimiter=self._delimiter, quotechar=self._dialect.quote or None), [])
        delimiter = _NAMES.get(self._delimiter, repr(self._delimiter))
        return (
            f"{len(cells)} cells; the header has {len(self.names)} ({', '.join(self.names)}): correct the row, or name "
            f"the delimiter with --delimiter, which was {delimiter}"
        )

    def _rows_before(self, position: int) -> int:
        """Count the records before an offset of the file."""
        with self._source.path.open("rb") as file:
            text = io.TextIOWrapper(io.BytesIO(file.read(position)), errors="replace", newline="")
        for _ in range(self._dialect.skip_rows):
            text.readline()
        rows = csv.reader(text, delimiter=self._delimiter, quotechar=self._dialect.quote or None)
        return sum(1 for row in rows if row) - self._dialect.header

    def _line_at(self, position: int) -> int:
        """Return the number of the line that starts at a position, or at the line break there."""
        with self._source.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            on_break = data[position : position + 1] == b"\n"
            return lines_between(data, 0, position) + 1 + on_break

    @staticmethod
    def _line(error: str) -> str:
        return next((line for line in error.splitlines() if "CSV Error on Line" in line), "").partition("Error: ")[2]


def _cause(error: str, line: str) -> str:
    place = f"{line.removeprefix('CSV Error on ').replace('Line: ', 'line ')}: " if line else ""
    if "not utf-8" in error.lower() or "invalid unicode" in error.lower():
        return f"{place}the text is not UTF-8: name its encoding, for example --encoding latin-1"
    if "maximum line size" in error.lower():
        return f"{place}{_TOO_LONG}"
    if "state machine" in error:
        return (
            "its lines end in different ways, with and without a carriage return: give all of them one end, for "
            "example with `dos2unix`"
        )
    return f"{place}cannot be read as CSV: {shown(' '.join(error.split()))}"


def _first_line(source: Source, dialect: Dialect) -> tuple[str, int]:
    """Return the first line that is not blank, and how many blank ones are before it."""
    blank = 0
    with source.path.open(encoding="utf-8-sig", errors="replace") as file:
        for _ in range(dialect.skip_rows):
            file.readline()
        while (line := file.readline(_HEADER_BYTES)) and not line.strip():
            blank += 1
    return line, blank


def _without_blank_lines(source: Source, dialect: Dialect) -> Dialect:
    """Return a dialect that skips blank lines before the first row: DuckDB would take one for the header."""
    line, blank = _first_line(source, dialect)
    return replace(dialect, skip_rows=dialect.skip_rows + blank) if line else dialect


def _with_excels_line(source: Source, dialect: Dialect) -> Dialect:
    """Return a dialect that skips Excel's first line, `sep=;`, and has its delimiter."""
    if dialect.skip_rows or dialect.delimiter:
        return dialect
    found = re.fullmatch(r'"?sep=(.)"?', _first_line(source, dialect)[0].rstrip("\r\n"))
    return dialect if found is None else replace(dialect, skip_rows=1, delimiter=found[1])


def _most_frequent(header: str, quote: str) -> str:
    """Return the delimiter that is most frequent outside quotes in the header; a comma if there is none."""
    outside = "".join(header.split(quote)[::2]) if quote else header
    return max(_DELIMITERS, key=outside.count)


def _literal(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(name)}: {_literal(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"
