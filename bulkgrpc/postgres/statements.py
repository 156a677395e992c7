"""Named SQL statements, a `.sql` file a family: `-- name: what`, a line of purpose, the statement."""

from __future__ import annotations

import re
from importlib import resources

_HEADING = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def family(name: str) -> dict[str, bytes]:
    """Return the statements of `sql/{name}.sql` by name."""
    text = resources.files("bulkgrpc.postgres").joinpath("sql", f"{name}.sql").read_text()
    parts = _HEADING.split(text)[1:]
    return {title: body.strip().encode() for title, body in zip(parts[::2], parts[1::2], strict=True)}
