"""A row of a file that could not become a record: how it is sent to the service, and how a report shows it.

Such a row is sent as a record that no message type accepts: a byte that no Protobuf message starts with, then JSON with
the row's file, number, reason and text. Without Arrow: `bulkgrpc jobs rejections` shows it in the light client, too.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from bulkgrpc.client import Rejection

MARK = b"\x07"
"""A tag with field number 0 and wire type 7: Protobuf has neither."""
TEXT_CHARS_MAX = 2000
"""Characters that are kept of a row's text, and of a reason."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be a record. row: number, 1 for the first record. column: "" for the whole row."""

    row: int
    column: str
    reason: str
    text: str

    def record(self, file: str) -> bytes:
        """Return the record that the service rejects in place of the row."""
        document = {"file": file, **asdict(self)}
        document |= {"text": self.text[:TEXT_CHARS_MAX], "reason": self.reason[:TEXT_CHARS_MAX]}
        # A character that UTF-8 does not have is written as an escape.
        return MARK + json.dumps(document).encode()


def described(record: bytes) -> tuple[str, str] | None:
    """Return column and reason of a bad row, from the record that was rejected; None for any other record."""
    if not record.startswith(MARK):
        return None
    try:
        found = json.loads(record[len(MARK) :])
        return found["column"], f"{found['file']}: row {found['row']:,}: {found['reason']}: {found['text']}"
    except (ValueError, TypeError, KeyError):
        return None


def with_row(rejection: Rejection) -> Rejection:
    """Return a rejection with the column and reason of its row, if its record stands for a bad row of a file."""
    found = described(rejection.record)
    return rejection if found is None else replace(rejection, field=found[0], reason=found[1])
