"""The options of the command `load`."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer


class OnBadRow(enum.StrEnum):
    """What a row that cannot be a record does."""

    STOP = "stop"
    REJECT = "reject"


FilesArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE…",
        help="The files to submit as one job; also directories and patterns. -: standard input.",
        show_default=False,
    ),
]
DatasetOption = Annotated[
    str,
    typer.Option(
        "--dataset",
        "-d",
        help="Name of the dataset to load the file into. Default with --retry-of: the dataset of that job.",
        show_default=False,
    ),
]
BatchRowsOption = Annotated[int, typer.Option(min=1, max=50_000, help="Records per batch.")]
KeyOption = Annotated[
    str,
    typer.Option(
        help="Idempotency key. Submissions with the same key are the same job. Default: a key derived from the files "
        "and options, and with --retry-of from that job."
    ),
]
AgainOption = Annotated[
    bool, typer.Option("--again", help="Load files that were loaded before as another job, with a random key.")
]
RetryOption = Annotated[
    str,
    typer.Option(
        metavar="JOB",
        help="The job whose rejected records the file corrects; see `bulkgrpc jobs rejections`.",
    ),
]
AtomicOption = Annotated[
    bool, typer.Option("--atomic", help="Write all records of the job in one transaction, or none of them.")
]
RejectionsMaxOption = Annotated[
    int, typer.Option(min=0, help="Fail the job if more records than this are rejected. 0: no limit.")
]
TimeToLiveOption = Annotated[
    float,
    typer.Option(
        min=0,
        metavar="SECONDS",
        help="Time to live, 1 s or more. Records that are not written within this time are discarded and count as "
        "expired. Default (0): the time_to_live of the dataset; if it has none, records do not expire.",
        show_default=False,
    ),
]
LabelOption = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Label of the job. Repeatable.")]
MissingOption = Annotated[
    bool,
    typer.Option(
        "--missing-is-default",
        help="Load the field's default value where the file has none, as Protobuf JSON omits it.",
    ),
]
IgnoreUnknownOption = Annotated[
    bool, typer.Option("--ignore-unknown-columns", help="Ignore columns that match no field of the dataset.")
]
OnBadRowOption = Annotated[
    OnBadRow,
    typer.Option(
        help="stop: a row that cannot be a record ends the load. reject: it becomes a rejection of the job, with its "
        "number, reason and text, and the other rows are loaded."
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Convert all files and submit nothing: show their rows and what is wrong.")
]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the job has ended.")]
DeadlineOption = Annotated[float, typer.Option(min=1, help="Seconds to wait for the job's end.")]
