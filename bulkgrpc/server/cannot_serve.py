"""Why a server process cannot start, and its exit status."""

from __future__ import annotations

from typing import Final

WRONG_SETTINGS: Final = 2
"""Exit status of a process that a restart would not help."""


class CannotServe(Exception):
    """The server cannot start; `str()` is one line that says why and what to do.

    status: the exit status; WRONG_SETTINGS if a restart would not help.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status
