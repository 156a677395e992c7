"""The command `load`."""

from __future__ import annotations

import uuid
from dataclasses import asdict, replace

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
from bulkgrpc.cli.file_submission import Check, FileLoad, LoadResult, retry_key, run_check, run_load
from bulkgrpc.cli.files import Rules
from bulkgrpc.cli.load_keys import derived_key
from bulkgrpc.cli.load_options import (
    AgainOption,
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
    OnBadRow,
    OnBadRowOption,
    RejectionsMaxOption,
    RetryOption,
    TimeToLiveOption,
    WaitOption,
)
from bulkgrpc.cli.reading_options import Reading, with_reading
from bulkgrpc.client import JobOptions, JobState


@with_reading
def load(
    file: FilesArgument,
    *,
    dataset: DatasetOption = "",
    batch_rows: BatchRowsOption = 1000,
    key: KeyOption = "",
    again: AgainOption = False,
    retry_of: RetryOption = "",
    atomic: AtomicOption = False,
    rejections_max: RejectionsMaxOption = 0,
    ttl: TimeToLiveOption = 0.0,
    label: LabelOption = None,
    ignore_unknown_columns: IgnoreUnknownOption = False,
    missing_is_default: MissingOption = False,
    on_bad_row: OnBadRowOption = OnBadRow.STOP,
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
    stops the load, unless --on-bad-row reject; check whole files first with --dry-run. See docs/files.md.

    For example:

        bulkgrpc load weather.csv --dataset weather

    After an interruption, run the same command again: it resumes where it stopped, and does not load the same files
    twice. Standard input and files that you changed need the --key that the command printed.

    Exit codes: 0 all records written; 1 the load failed or did not end in time; 2 wrong usage; 3 some records rejected
    or expired; 4 the job failed; 5 the job was cancelled or expired; 130 interrupted by Ctrl-C.
    """
    _check_names(dataset, retry_of, key, again=again)
    with console.failures():
        options = ConnectionOptions(server, tenant, token, tls_ca)
        retried = options.job_name(retry_of) if retry_of else ""
        rules = Rules(missing_is_default, ignore_unknown_columns, corrected=bool(retried))
        files = reading.files(file, batch_rows, rules, reject_bad_rows=on_bad_row is OnBadRow.REJECT)
        labels = _labels(label or []) | ({"retry_of": retried} if retried else {})
        wait_s, job_options = deadline if wait else 0.0, JobOptions(atomic, rejections_max, ttl)
        (first, first_options), *more = files
        request = FileLoad(first, dataset, first_options, key, labels, wait_s, job_options, retried, tuple(more))
        request = _with_key(request, again=again)
        result = run_check(options, request) if dry_run else _submit(options, request, shown=not as_json)
    _report(result, as_json=as_json, wait=wait)


def _check_names(dataset: str, retry_of: str, key: str, *, again: bool) -> None:
    if not dataset and not retry_of:
        raise typer.BadParameter("name the dataset, or a job with --retry-of", param_hint="--dataset")
    if again and (key or retry_of):
        raise typer.BadParameter("the job already has a key: use either of them", param_hint="--again")


def _with_key(request: FileLoad, *, again: bool) -> FileLoad:
    if request.key:
        return request
    if again:
        return replace(request, key=uuid.uuid4().hex)
    if request.retry_of:
        return replace(request, key=retry_key(request.retry_of, request.path, request.options))
    return replace(request, key=derived_key(request.files, request.dataset, request.labels, request.job_options))


def _submit(options: ConnectionOptions, request: FileLoad, *, shown: bool) -> LoadResult:
    try:
        return run_load(options, request, shown=shown)
    except KeyboardInterrupt:
        console.fail(f"interrupted: resume with --key {request.key}", console.EXIT_INTERRUPTED)
        raise


def _report(result: LoadResult | Check, *, as_json: bool, wait: bool) -> None:
    """Print a result: of a job, or of files that were only converted."""
    if isinstance(result, Check):
        _report_check(result, as_json=as_json)
        return
    if as_json:
        console.print_json(_document(result))
    else:
        console.print_table(console.job_table(result.job))
        console.stderr_console().print(_summary(result))
    if wait:
        console.exit_by_state(result.job.state)


def _report_check(check: Check, *, as_json: bool) -> None:
    if as_json:
        found = {"rejected": check.bad_rows, "rejections": [asdict(row) for row in check.bad]} if check.bad_rows else {}
        console.print_json({"rows": check.rows, **found, "submitted": False})
    elif not check.bad_rows:
        typer.echo(f"All {check.rows:,} rows can be loaded. Nothing was submitted.")
    else:
        typer.echo(f"{check.bad_rows:,} of {check.rows:,} rows would be rejected. Nothing was submitted. The first:")
        for row in check.bad:
            typer.echo(f"row {row.row:,}: {row.reason}: {row.text}")
    if check.bad_rows:
        raise typer.Exit(console.EXIT_BY_STATE[JobState.PARTIALLY_SUCCEEDED])


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
        return (
            f"Nothing was sent: the job with key {result.load.key} was sealed before. "
            "Load the same files as another job with --again."
        )
    rate = result.rows / max(result.seconds, 1e-3)
    return f"{result.rows:,} rows in {result.seconds:.1f} s ({rate:,.0f} rows/s). Key: {result.load.key}"
