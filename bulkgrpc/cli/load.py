"""The command `load`."""

from __future__ import annotations

import uuid
from pathlib import Path

import typer

from bulkgrpc.cli import console
from bulkgrpc.cli.connection_options import (
    SERVER,
    ConnectionOptions,
    JsonOption,
    ServerOption,
    TenantOption,
    TlsCaOption,
    TokenOption,
)
from bulkgrpc.cli.file_submission import FileLoad, LoadResult, retry_key, run_load
from bulkgrpc.cli.files import FileOptions, Format, format_of
from bulkgrpc.cli.load_options import (
    AtomicOption,
    BatchRowsOption,
    DatasetOption,
    DeadlineOption,
    FileArgument,
    FormatOption,
    IgnoreUnknownOption,
    KeyOption,
    LabelOption,
    NullOption,
    RejectionsMaxOption,
    RetryOption,
    TimeToLiveOption,
    WaitOption,
)
from bulkgrpc.client import JobOptions

DEFAULT_NULLS = ["", "NA"]
RETRY_NULLS = [""]
"""`jobs rejections` writes an empty cell for null, and a text "NA" unchanged."""


def load(
    file: FileArgument,
    *,
    dataset: DatasetOption = "",
    file_format: FormatOption = None,
    batch_rows: BatchRowsOption = 1000,
    key: KeyOption = "",
    retry_of: RetryOption = "",
    atomic: AtomicOption = False,
    rejections_max: RejectionsMaxOption = 0,
    ttl: TimeToLiveOption = 0.0,
    label: LabelOption = None,
    null: NullOption = None,
    ignore_unknown_columns: IgnoreUnknownOption = False,
    wait: WaitOption = True,
    deadline: DeadlineOption = 300.0,
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submit a file as one job, wait until the job has ended, and print its counts.

    Formats: CSV, JSON lines, Parquet and delimited Protobuf. Files are read in blocks, so a file may be larger than
    memory. Columns are matched with the message's fields by name: `venue.code` or `venue_code` for a nested field.
    Times are ISO 8601, enums are names, bytes are base64, and a list in a CSV cell is a JSON array.

    For example:

        bulkgrpc load weather.csv --dataset weather

    If the load is interrupted, run the same command with the key that it printed. It resumes where it stopped:

        bulkgrpc load weather.csv --dataset weather --key 3f0c…

    Exit codes: 0 all records written; 1 the load failed or did not end in time; 2 wrong usage; 3 some records were
    rejected or expired; 4 the job failed; 5 the job was cancelled or expired; 130 interrupted by Ctrl-C.
    """
    if not dataset and not retry_of:
        raise typer.BadParameter("name the dataset, or a job with --retry-of", param_hint="--dataset")
    with console.failures():
        options = ConnectionOptions(server, tenant, token, tls_ca)
        retried = options.job_name(retry_of) if retry_of else ""
        request = FileLoad(
            file,
            dataset,
            _file_options(file, file_format, batch_rows, null, ignore_unknown_columns, bool(retried)),
            key or (retry_key(retried, file) if retried else uuid.uuid4().hex),
            _labels(label or []) | ({"retry_of": retried} if retried else {}),
            deadline if wait else 0.0,
            JobOptions(atomic, rejections_max, ttl),
            retried,
        )
        try:
            result = run_load(options, request, shown=not as_json)
        except KeyboardInterrupt:
            console.fail(f"interrupted: resume with --key {request.key}", console.EXIT_INTERRUPTED)
    _report(result, as_json=as_json, wait=wait)


def _file_options(
    file: Path, form: Format | None, batch_rows: int, null: list[str] | None, ignore_unknown: bool, corrected: bool
) -> FileOptions:
    nulls = null if null is not None else RETRY_NULLS if corrected else DEFAULT_NULLS
    return FileOptions(form or format_of(file), batch_rows, tuple(nulls), ignore_unknown, corrected)


def _report(result: LoadResult, *, as_json: bool, wait: bool) -> None:
    if as_json:
        console.print_json(_document(result))
    else:
        console.print_table(console.job_table(result.job))
        console.stderr_console().print(_summary(result))
    if wait:
        console.exit_by_state(result.job.state)


def _labels(pairs: list[str]) -> dict[str, str]:
    labels = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    invalid = [pair for pair in pairs if "=" not in pair]
    if invalid:
        raise typer.BadParameter(f"{invalid[0]!r} is not KEY=VALUE", param_hint="--label")
    return labels


def _document(result: LoadResult) -> dict[str, object]:
    return {
        "job": console.job_document(result.job),
        "key": result.load.key,
        "replayed": result.replayed,
        "rows": result.rows,
        "bytes": result.size_bytes,
        "seconds": round(result.seconds, 3),
    }


def _summary(result: LoadResult) -> str:
    if result.replayed:
        return f"Nothing was sent: the job with key {result.load.key} was sealed before."
    rate = result.rows / max(result.seconds, 1e-3)
    return f"{result.rows:,} rows in {result.seconds:.1f} s ({rate:,.0f} rows/s). Key: {result.load.key}"
