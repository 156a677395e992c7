"""The idempotency key of a load that was given none: the same files, read in the same way, are the same job."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from bulkgrpc.cli.files import FileError, FileOptions
from bulkgrpc.client import JobOptions

_END_BYTES = 1024 * 1024


def derived_key(
    files: Sequence[tuple[Path, FileOptions]], dataset: str, labels: Mapping[str, str], job_options: JobOptions
) -> str:
    """Return the key of a load: equal for the same files, options, labels and dataset: a broken load is resumed.

    A file is the same if its absolute path, size, time of modification, first and last MiB are. A source that is no
    regular file, such as standard input, cannot be read again: its load has a random key. Raises FileError if a file
    cannot be read.
    """
    if not all(path.is_file() for path, _ in files):
        return uuid.uuid4().hex
    # `repr` of these values names every option: one that is added later changes the key, and only that.
    digest = hashlib.sha256(repr((dataset, sorted(labels.items()), job_options)).encode())
    for path, options in files:
        digest.update(repr(options).encode())
        _add_file(digest, path)
    return f"load-{digest.hexdigest()[:40]}"


def _add_file(digest: hashlib._Hash, path: Path) -> None:
    try:
        with path.open("rb") as content:
            stored = path.stat()
            digest.update(repr((str(path.absolute()), stored.st_size, stored.st_mtime_ns)).encode())
            digest.update(content.read(_END_BYTES))
            content.seek(max(0, stored.st_size - _END_BYTES))
            digest.update(content.read(_END_BYTES))
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error
