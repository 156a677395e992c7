"""The progress of loads on stderr: a bar on a terminal, a line every 10 seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Display
from rich.table import Column
from rich.text import Text

from bulkgrpc.cli.console import stderr_console
from bulkgrpc.client import Job

LINE_EVERY_S = 10.0
_NAME_CHARS_MAX = 18


class _TimeColumn(ProgressColumn):
    """The time that is left while a file is sent, then the time since the start."""

    def render(self, task: Task) -> Text:
        """Return the time, in at most ten characters."""
        left_s = task.fields["left_s"]
        return Text(f"{_clock(task.elapsed or 0)}" if left_s is None else f"-{_clock(left_s)}", justify="right")


class LoadDisplay:
    """Shows for each load: rows accepted or applied, rows per second, rows rejected, the time that is left.

    Shows nothing unless `shown`. On a terminal each load has a line with a bar; elsewhere a line is printed every
    LINE_EVERY_S. console: default is stderr. clock: seconds, for these lines.
    """

    def __init__(
        self, *, shown: bool, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console or stderr_console()
        self._lines = shown and not self._console.is_terminal
        self._clock = clock
        self._printed_s = clock()
        right = Column(no_wrap=True, justify="right")
        self._display = Display(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(5),
            TextColumn("{task.fields[rows]:,} rows", table_column=right),
            TextColumn("{task.fields[rate]:,.0f}/s", table_column=right),
            TextColumn("{task.fields[bad]}", table_column=right),
            TextColumn("{task.fields[phase]}", table_column=Column(no_wrap=True)),
            _TimeColumn(table_column=right),
            console=self._console,
            disable=not (shown and self._console.is_terminal),
        )

    def __enter__(self) -> LoadDisplay:
        self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._display.stop()

    def begin(self, name: str, size_bytes: int) -> TaskID:
        """Add a line and return its ID. The middle of a long file name is left out."""
        if len(name) > _NAME_CHARS_MAX:
            name = f"{name[: _NAME_CHARS_MAX - 9]}…{name[-8:]}"
        return self._display.add_task(name, total=size_bytes, rows=0, rate=0.0, bad="", phase="sending", left_s=None)

    def sending(self, line: TaskID, read_bytes: int, rows: int, bad_rows: int, seconds: float) -> None:
        """Show how much of the file was read and accepted."""
        total = self._display.tasks[line].total or 0
        left_s = seconds * (total - read_bytes) / read_bytes if read_bytes and total > read_bytes else None
        self._show(line, rows, bad_rows, seconds, completed=read_bytes, left_s=left_s)

    def writing(self, line: TaskID, job: Job, seconds: float) -> None:
        """Show how many records the workers have applied."""
        counts = job.counts
        applied = counts.written + counts.duplicate + counts.rejected + counts.expired + counts.skipped
        if job.apply_progress is not None:
            applied += job.apply_progress.applied_rows
        phase = "ended" if job.ended else "writing" if job.block is None else "blocked"
        self._show(line, applied, counts.rejected, seconds, phase=phase, left_s=None)
        if job.ended:
            self._display.stop_task(line)

    def _show(self, line: TaskID, rows: int, bad_rows: int, seconds: float, **fields: object) -> None:
        rate = rows / max(seconds, 1e-3)
        bad = f"{bad_rows:,} bad" if bad_rows else ""
        self._display.update(line, rows=rows, rate=rate, bad=bad, **fields)  # type: ignore[arg-type]
        if not self._lines or self._clock() - self._printed_s < LINE_EVERY_S:
            return
        self._printed_s = self._clock()
        task = self._display.tasks[line]
        left_s = task.fields["left_s"]
        left = "" if left_s is None else f", {task.percentage:.0f} % read, {_clock(left_s)} left"
        counts = f"{rows:,} rows, {rate:,.0f} rows/s, {bad_rows:,} rejected"
        self._console.print(f"{task.description}: {task.fields['phase']}, {counts}{left}", soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"
