"""Where a file's bytes come from: a path, standard input or a pipe, compressed or in another encoding.

Readers need a regular file of plain bytes: other sources are copied into a temporary file first.
"""

from __future__ import annotations

import codecs
import io
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

import pyarrow as pa

from bulkgrpc.cli.bad_row import BadRow
from bulkgrpc.cli.files.bad_rows import Numbers
from bulkgrpc.cli.files.errors import FileError

STANDARD_INPUT = "-"
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
"""Suffixes of compressed files, and Arrow's name of the compression."""
_DOWNLOADS = {
    "s3": "aws s3 cp {address} -",
    "gs": "gcloud storage cat {address}",
    "http": "curl -fsSL {address}",
    "https": "curl -fsSL {address}",
    "ftp": "curl -fsS {address}",
}
_BEGIN_BYTES = 64 * 1024
_MAGIC = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "compressed with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF",
}


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of a file, in order. read_bytes: file offset after the block, estimated where the reader does not know.

    numbers: of the table's rows in the file, from 1; None if they follow the rows of the blocks before. bad: rows that
    cannot be read, and are not in the table.
    """

    table: pa.Table
    read_bytes: int
    numbers: Numbers | None = None
    bad: Sequence[BadRow] = ()


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Source:
    """A file to read. path: of its plain bytes. name: for messages."""

    path: Path
    name: str
    size_bytes: int


def check_local(path: Path) -> None:
    """Raise FileError if a path is the address of a file elsewhere. `Path` has made one slash of two."""
    scheme, colon, rest = str(path).partition(":/")
    if not colon or scheme not in _DOWNLOADS:
        return
    address = f"{scheme}://{rest.lstrip('/')}"
    command = _DOWNLOADS[scheme].format(address=address)
    raise FileError(
        f"{address} is not read by address: use `{command} | bulkgrpc load - --format csv|jsonl|parquet|arrow`"
    )


def copied(name: str, write: Callable[[IO[bytes]], None]) -> Source:
    """Return a source whose bytes are in a temporary file, which is removed with the source. write: writes them."""
    number, path = tempfile.mkstemp(prefix="bulkgrpc-")
    try:
        with open(number, "wb") as copy:
            write(copy)
    except BaseException:
        Path(path).unlink()
        raise
    source = Source(Path(path), name, Path(path).stat().st_size)
    weakref.finalize(source, Path(path).unlink, missing_ok=True)
    return source


def open_source(path: Path, encoding: str = "utf-8") -> Source:
    """Open a file. path: `-` for standard input. encoding: of its text, as Python names it.

    Raises FileError if it is not there, is a directory, cannot be unpacked, or is not text of this encoding.
    """
    check_local(path)
    if str(path) != STANDARD_INPUT and path.is_dir():
        raise FileError(f"{path} is a directory: name one file")
    if str(path) != STANDARD_INPUT and not path.exists():
        raise FileError(f"there is no file {path}")
    compression = COMPRESSIONS.get(path.suffix.lower())
    plain = encoding.lower().replace("_", "-") in {"utf-8", "utf8", "utf-8-sig"}
    try:
        if path.is_file() and compression is None and plain:
            return Source(path, path.name, path.stat().st_size)
        return _copied(path, compression, "utf-8" if plain else encoding)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error


def _copied(path: Path, compression: str | None, encoding: str) -> Source:
    is_input = str(path) == STANDARD_INPUT
    name = "standard input" if is_input else path.name

    def write(copy: IO[bytes]) -> None:
        with sys.stdin.buffer if is_input else path.open("rb") as raw:
            content = cast("BinaryIO", raw if compression is None else pa.CompressedInputStream(raw, compression))
            if encoding == "utf-8":
                shutil.copyfileobj(content, copy, 1024 * 1024)
            else:
                _transcode(content, copy, encoding)

    try:
        return copied(name, write)
    except (UnicodeError, LookupError) as error:
        raise FileError(f"{name}: the text is not {encoding}: {error}; name another --encoding") from None


def _transcode(content: BinaryIO, copy: IO[bytes], encoding: str) -> None:
    decoder = codecs.getincrementaldecoder(encoding)()
    while data := content.read(1024 * 1024):
        copy.write(decoder.decode(data).encode())
    copy.write(decoder.decode(b"", final=True).encode())


def check_text(source: Source) -> None:
    """Check that a file starts with text. Parsing anything else takes long and may succeed with nonsense."""
    with source.path.open("rb") as file:
        begin = file.read(_BEGIN_BYTES)
    what = next((what for magic, what in _MAGIC.items() if begin.startswith(magic)), None)
    if what is None and begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise FileError(f"{source.name}: the file is UTF-16, not UTF-8: read it with --encoding utf-16")
    try:
        # The last character may be incomplete.
        codecs.getincrementaldecoder("utf-8")().decode(begin)
    except UnicodeDecodeError:
        what = what or "not UTF-8 text"
    # A text may contain one: its record is rejected, and a file of rejected records contains it again.
    if what is None and begin.count(0) * 10 > len(begin):
        what = "not text"
    if what is not None:
        raise FileError(
            f"{source.name}: the file is {what}: unpack it, name its encoding with --encoding, or use another --format"
        )


def text_of(source: Source) -> io.BufferedReader:
    """Open a text for reading, after its byte order mark if it has one."""
    file = source.path.open("rb")
    if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
        file.seek(0)
    return file
