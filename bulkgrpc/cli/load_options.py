"""The options of the command `load`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bulkgrpc.cli.files import Format

FileArgument = Annotated[Path, typer.Argument(help="The file to submit.", show_default=False)]
DatasetOption = Annotated[
    str,
    typer.Option(
        "--dataset",
        "-d",
        help="The dataset that its records belong to. Default: that of the job of --retry-of.",
        show_default=False,
    ),
]
FormatOption = Annotated[
    Format | None, typer.Option("--format", help="What the file is. Default: by its suffix.", show_default=False)
]
BatchRowsOption = Annotated[int, typer.Option(min=1, max=50_000, help="Records in a batch.")]
KeyOption = Annotated[
    str,
    typer.Option(
        help="Idempotency key: the same key is the same job. Default: a random one; with --retry-of, one of that job "
        "and the file."
    ),
]
RetryOption = Annotated[
    str,
    typer.Option(metavar="JOB", help="The file holds mended rejections of this job: see `bulkgrpc jobs rejections`."),
]
AtomicOption = Annotated[
    bool, typer.Option("--atomic", help="Show nothing in the table before all of it is there; or nothing at all.")
]
RejectionsMaxOption = Annotated[
    int, typer.Option(min=0, help="Fail the job when it has more rejections than this; 0: never.")
]
TimeToLiveOption = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="Discard what is not applied by then, 1 s or more; 0: never.")
]
LabelOption = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Label of the job; repeatable.")]
NullOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Text of a CSV file that means “no value”; repeatable. Default: nothing at all, and (not with --retry-of) "
        "NA."
    ),
]
IgnoreUnknownOption = Annotated[
    bool, typer.Option("--ignore-unknown-columns", help="Leave out columns that are no field of the dataset.")
]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the job has ended.")]
DeadlineOption = Annotated[float, typer.Option(min=1, help="Seconds to wait for the job's end.")]
