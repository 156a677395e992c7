"""The command `load`."""

from __future__ import annotations

import uuid
from pathlib import Path

import typer

from bulkgrpc.cli import console
from bulkgrpc.cli.connecting import SERVER, Caller, JsonOption, ServerOption, TenantOption, TlsCaOption, TokenOption
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
from bulkgrpc.cli.loading import Load, Loaded, retry_key, run_load
from bulkgrpc.client import JobOptions

DEFAULT_NULLS = ["", "NA"]
RETRY_NULLS = [""]
"""`jobs rejections` writes nothing for no value, and a text NA as it is."""


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
    """Submit a file as one job, and tell what became of it.

    Reads CSV, JSON lines, Parquet and delimited Protobuf in blocks, so a file may be larger than memory. Columns are
    the message's fields: `venue.code` or `venue_code` for a nested one. Times are ISO 8601, enums go by name, bytes
    are base64, a list in a CSV cell is a JSON array.

        bulkgrpc load weather.csv --dataset weather

    If it breaks off, the same command with the key that it printed goes on where it stopped:

        bulkgrpc load weather.csv --dataset weather --key 3f0c…

    Exit codes: 0 all written, 3 some records rejected or expired, 4 the job failed, 5 it was cancelled or expired, 1 it
    broke off.
    """
    if not dataset and not retry_of:
        raise typer.BadParameter("name the dataset, or the job with --retry-of", param_hint="--dataset")
    with console.failures():
        caller = Caller(server, tenant, token, tls_ca)
        retried = caller.job_name(retry_of) if retry_of else ""
        request = Load(
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
            loaded = run_load(caller, request, shown=not as_json)
        except KeyboardInterrupt:
            console.fail(f"interrupted: go on with --key {request.key}", console.EXIT_INTERRUPTED)
    _report(loaded, as_json=as_json, wait=wait)


def _file_options(
    file: Path, form: Format | None, batch_rows: int, null: list[str] | None, ignore_unknown: bool, mended: bool
) -> FileOptions:
    nulls = null if null is not None else RETRY_NULLS if mended else DEFAULT_NULLS
    return FileOptions(form or format_of(file), batch_rows, tuple(nulls), ignore_unknown, mended)


def _report(loaded: Loaded, *, as_json: bool, wait: bool) -> None:
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
