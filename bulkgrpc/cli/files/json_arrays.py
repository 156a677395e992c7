"""Rewrites a file that is one JSON array as JSON lines, with DuckDB: element by element, each text as it is."""

from __future__ import annotations

from typing import IO

import duckdb

from bulkgrpc.cli.files.errors import FileError, one_line
from bulkgrpc.cli.files.sources import Source, copied, text_of
from bulkgrpc.tabular.errors import shown

ELEMENT_BYTES_MAX = 4 * 1024 * 1024
_ROWS = 10_000


def as_lines(source: Source) -> Source:
    """Return a source of JSON lines: the same one, or a copy of an array's elements. Raises FileError."""
    with text_of(source) as file:
        if not file.read(1024).lstrip().startswith(b"["):
            return source
    path = str(source.path).replace("'", "''")
    # A line break in JSON text is between values: within a string it is escaped.
    query = (
        "SELECT replace(replace(json::VARCHAR, chr(10), ' '), chr(13), ' ') FROM read_json_objects("  # noqa: S608
        f"'{path}', format = 'array', maximum_object_size = {ELEMENT_BYTES_MAX})"
    )

    def write(copy: IO[bytes]) -> None:
        with duckdb.connect(config={"preserve_insertion_order": True}) as connection:
            for batch in connection.sql(query).to_arrow_reader(_ROWS):
                copy.write("".join(f"{line}\n" for line in batch.column(0).to_pylist()).encode())

    try:
        return copied(source.name, write)
    except (duckdb.Error, OSError) as error:
        raise FileError(f"{source.name}: the JSON array cannot be read: {shown(one_line(error))}") from None
