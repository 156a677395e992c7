"""The command `load`."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Annotated

import typer

from bulkgrpc.cli import console
from bulkgrpc.cli.connecting import SERVER, Caller, JsonOption, ServerOption, TenantOption, TlsCaOption, TokenOption
from bulkgrpc.cli.files import FileOptions, Format, format_of
from bulkgrpc.cli.loading import Load, Loaded, run_load

DEFAULT_NULLS = ["", "NA"]


def load(
    file: Annotated[Path, typer.Argument(help="The file to submit.", show_default=False)],
    *,
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="The dataset that its records belong to.")],
    file_format: Annotated[
        Format | None, typer.Option("--format", help="What the file is. Default: by its suffix.", show_default=False)
    ] = None,
    batch_rows: Annotated[int, typer.Option(min=1, max=50_000, help="Records in a batch.")] = 1000,
    key: Annotated[
        str, typer.Option(help="Idempotency key: the same key is the same job. Default: a random one.")
    ] = "",
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Label of the job; repeatable.")] = None,
    null: Annotated[
        list[str] | None,
        typer.Option(help="Text of a CSV file that means “no value”; repeatable. Default: nothing at all, and NA."),
    ] = None,
    ignore_unknown_columns: Annotated[
        bool, typer.Option("--ignore-unknown-columns", help="Leave out columns that are no field of the dataset.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the job has ended.")] = True,
    deadline: Annotated[float, typer.Option(min=1, help="Seconds to wait for the job's end.")] = 300.0,
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submit a file as one job, and tell what became of it.

    Reads CSV, JSON lines, Parquet and delimited Protobuf in blocks, so a file may be larger than memory. Columns are
    the message's fields: `venue.code` or `venue_code` for a nested one. Times are ISO 8601, enums go by name, bytes
    are base64, a list in a CSV cell is a JSON array.

        bulkgrpc load weather.csv --dataset weather

    If it breaks off, the same command with the key that it printed goes on where it stopped:

        bulkgrpc load weather.csv --dataset weather --key 3f0c…

    Exit codes: 0 all written, 3 some records rejected, 4 all rejected, 1 it broke off.
    """
    with console.failures():
        nulls = tuple(DEFAULT_NULLS if null is None else null)
        options = FileOptions(file_format or format_of(file), batch_rows, nulls, ignore_unknown_columns)
        request = Load(file, dataset, options, key or uuid.uuid4().hex, _labels(label or []), deadline if wait else 0.0)
        try:
            loaded = run_load(Caller(server, tenant, token, tls_ca), request, shown=not as_json)
        except KeyboardInterrupt:
            console.fail(f"interrupted: go on with --key {request.key}", console.EXIT_INTERRUPTED)
    if as_json:
        console.print_json(_document(loaded))
    else:
        console.print_table(console.job_table(loaded.job))
        console.human().print(_summary(loaded))
    if wait:
        console.exit_by_state(loaded.job.state)


def _labels(pairs: list[str]) -> dict[str, str]:
    labels = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r} is not KEY=VALUE", param_hint="--label")
    return labels


def _document(loaded: Loaded) -> dict[str, object]:
    return {
        "job": console.job_document(loaded.job),
        "key": loaded.load.key,
        "replayed": loaded.replayed,
        "rows": loaded.rows,
        "bytes": loaded.size_bytes,
        "seconds": round(loaded.seconds, 3),
    }


def _summary(loaded: Loaded) -> str:
    if loaded.replayed:
        return f"Nothing was sent: key {loaded.load.key} had been submitted before."
    rate = loaded.rows / max(loaded.seconds, 1e-3)
    return f"{loaded.rows:,} rows in {loaded.seconds:.1f} s ({rate:,.0f} rows/s). Key: {loaded.load.key}"
