"""The idempotency key of a load that was given none: the same files, read in the same way, are the same job."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from bulkgrpc.cli.files import FileError, FileOptions
from bulkgrpc.cli.files.sources import STANDARD_INPUT
from bulkgrpc.client import JobOptions


def derived_key(
    files: Sequence[tuple[Path, FileOptions]], dataset: str, labels: Mapping[str, str], job_options: JobOptions
) -> str:
    """Return the key of a load: equal for the same files, options, labels and dataset: a broken load is resumed.

    A file is the same if its absolute path and its content are: SHA-256 takes a second or two for a gigabyte. A source
    that is no regular file, such as standard input, cannot be read again: its load has a random key. Raises FileError
    if a file cannot be read.
    """
    if not all(path.is_file() and str(path) != STANDARD_INPUT for path, _ in files):
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
            digest.update(str(path.absolute()).encode())
            digest.update(hashlib.file_digest(content, "sha256").digest())
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error
