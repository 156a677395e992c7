"""Reads several files as one, in a defined order, so that an interrupted load resumes where it stopped."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from bulkgrpc.cli.bad_row import BadRow
from bulkgrpc.cli.files.batches import BAD_ROWS_KEPT, FileOptions, format_of, open_batches
from bulkgrpc.cli.files.errors import FileError
from bulkgrpc.cli.files.sources import STANDARD_INPUT, check_local
from bulkgrpc.client import Batch
from bulkgrpc.datasets.definition import Dataset


def expanded(paths: Sequence[Path]) -> list[Path]:
    """Return the files that paths name, in their order: a directory's and a pattern's files by name.

    A directory has the files below it whose suffix names a format. Raises FileError if one has none.
    """
    found: list[Path] = []
    for path in paths:
        check_local(path)
        if str(path) == STANDARD_INPUT or path.is_file():
            found.append(path)
        elif path.is_dir():
            inner = sorted(one for one in path.rglob("*") if one.is_file() and _has_format(one))
            if not inner:
                raise FileError(f"{path} is a directory without a file whose suffix names a format")
            found += inner
        elif not path.exists() and glob.has_magic(str(path)):
            matching = sorted(Path(one) for one in glob.glob(str(path), recursive=True))
            if not matching:
                raise FileError(f"no file matches {path}")
            found += matching
        else:
            found.append(path)
    repeated = sorted({str(path) for path in found if found.count(path) > 1})
    if repeated:
        raise FileError(f"{repeated[0]} is named twice")
    return found


def _has_format(path: Path) -> bool:
    try:
        format_of(path)
    except FileError:
        return False
    return True


class FileSet:
    """The batches of files, one after the other. Each file is opened when its turn comes.

    size_bytes: of the files as they are stored. read_bytes, rows, bad_rows: up to the last batch that was
    yielded. bad: the first bad rows of the files that were read. A batch has records of one file only.
    """

    def __init__(self, files: Sequence[tuple[Path, FileOptions]], dataset: Dataset) -> None:
        self._files = files
        self._dataset = dataset
        self.size_bytes = sum(path.stat().st_size for path, _ in files if path.is_file())
        self.read_bytes = self.rows = self.bad_rows = 0
        self.bad: list[BadRow] = []

    def __iter__(self) -> Iterator[Batch]:
        self.rows = self.bad_rows = before_bytes = 0
        self.bad = []
        for path, options in self._files:
            batches = open_batches(path, self._dataset, options)
            before_bad = self.bad_rows
            stored_bytes = path.stat().st_size if path.is_file() else 0
            for batch in batches:
                self.rows += batch.records
                self.bad_rows = before_bad + batches.bad_rows
                self.read_bytes = before_bytes + stored_bytes * batches.read_bytes // max(1, batches.size_bytes)
                yield batch
            before_bytes += stored_bytes
            self.bad += batches.bad[: BAD_ROWS_KEPT - len(self.bad)]
