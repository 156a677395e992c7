"""The command `load`."""

from __future__ import annotations

import uuid

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
from bulkgrpc.cli.file_submission import FileLoad, LoadResult, retry_key, run_check, run_load
from bulkgrpc.cli.files import Rules
from bulkgrpc.cli.load_options import (
    AtomicOption,
    BatchRowsOption,
    DatasetOption,
    DeadlineOption,
    DryRunOption,
    FilesArgument,
    IgnoreUnknownOption,
    KeyOption,
    LabelOption,
    MissingOption,
    RejectionsMaxOption,
    RetryOption,
    TimeToLiveOption,
    WaitOption,
)
from bulkgrpc.cli.reading_options import Reading, with_reading
from bulkgrpc.client import JobOptions


@with_reading
def load(
    file: FilesArgument,
    *,
    dataset: DatasetOption = "",
    batch_rows: BatchRowsOption = 1000,
    key: KeyOption = "",
    retry_of: RetryOption = "",
    atomic: AtomicOption = False,
    rejections_max: RejectionsMaxOption = 0,
    ttl: TimeToLiveOption = 0.0,
    label: LabelOption = None,
    ignore_unknown_columns: IgnoreUnknownOption = False,
    missing_is_default: MissingOption = False,
    dry_run: DryRunOption = False,
    wait: WaitOption = True,
    deadline: DeadlineOption = 300.0,
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
    reading: Reading,
) -> None:
    """Submit files as one job, wait until the job has ended, and print its counts.

    Formats: CSV, JSON lines, Parquet, Arrow, delimited Protobuf; .gz, .bz2 and .zst are unpacked. Columns are matched
    with fields by name: `venue.code` or `venue_code` for a nested field. A value that its field cannot have exactly
    stops the load and is named with its row and column. See docs/files.md.

    For example:

        bulkgrpc load weather.csv --dataset weather

    After an interruption, run the same command with the key that it printed. It resumes where it stopped:

        bulkgrpc load weather.csv --dataset weather --key 3f0c…

    Exit codes: 0 all records written; 1 the load failed or did not end in time; 2 wrong usage; 3 some records rejected
    or expired; 4 the job failed; 5 the job was cancelled or expired; 130 interrupted by Ctrl-C.
    """
    if not dataset and not retry_of:
        raise typer.BadParameter("name the dataset, or a job with --retry-of", param_hint="--dataset")
    with console.failures():
        options = ConnectionOptions(server, tenant, token, tls_ca)
        retried = options.job_name(retry_of) if retry_of else ""
        rules = Rules(missing_is_default, ignore_unknown_columns, corrected=bool(retried))
        (first, reading_first), *more = reading.files(file, batch_rows, rules)
        request = FileLoad(
            first,
            dataset,
            reading_first,
            key or (retry_key(retried, first) if retried else uuid.uuid4().hex),
            _labels(label or []) | ({"retry_of": retried} if retried else {}),
            deadline if wait else 0.0,
            JobOptions(atomic, rejections_max, ttl),
            retried,
            tuple(more),
        )
        result = run_check(options, request) if dry_run else _submit(options, request, shown=not as_json)
    _report(result, as_json=as_json, wait=wait)


def _submit(options: ConnectionOptions, request: FileLoad, *, shown: bool) -> LoadResult:
    try:
        return run_load(options, request, shown=shown)
    except KeyboardInterrupt:
        console.fail(f"interrupted: resume with --key {request.key}", console.EXIT_INTERRUPTED)
        raise


def _report(result: LoadResult | int, *, as_json: bool, wait: bool) -> None:
    """Print a result. result: a number of rows if they were only converted."""
    if isinstance(result, int):
        if as_json:
            console.print_json({"rows": result, "submitted": False})
        else:
            typer.echo(f"All {result:,} rows can be loaded. Nothing was submitted.")
        return
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
