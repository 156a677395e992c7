"""The command `jobs rejections`: lists rejected records, or writes them to a file that can be corrected."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from bulkgrpc.cli import console
from bulkgrpc.cli.bad_row import with_row
from bulkgrpc.cli.connection_options import (
    SERVER,
    ConnectionOptions,
    JsonOption,
    ServerOption,
    TenantOption,
    TlsCaOption,
    TokenOption,
)
from bulkgrpc.cli.extras import require
from bulkgrpc.client import AsyncBulkClient, Rejection

if TYPE_CHECKING:
    from bulkgrpc.cli.files.rejected_records import RejectedRecordsFile

LISTED = 50
_ROWS_PER_WRITE = 1000


def rejections(
    job: Annotated[
        str, typer.Argument(metavar="JOB", help="The job: `tenants/…/jobs/…`, or only the ID.", show_default=False)
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the records to a .csv or .jsonl file, to correct them.", show_default=False
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of rejections. Default: 50; with --out, all.", show_default=False),
    ] = None,
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the rejected records of a job with their reasons.

    For example:

        bulkgrpc jobs rejections tenants/default/jobs/0b6ec6dc-…

    With --json, the command prints one JSON object per line.

    With --out, the command writes the records to a file: the dataset's fields, then the columns _sequence,
    _record_index, _code, _field and _reason. The column record_base64 has the bytes of a record that cannot be decoded.
    A row that `load --on-bad-row reject` could not read has its row and text in the reason. Correct the file and
    submit it:

        bulkgrpc jobs rejections JOB --out rejected.csv

        bulkgrpc load rejected.csv --retry-of JOB
    """
    with console.failures():
        options = ConnectionOptions(server, tenant, token, tls_ca)
        name = options.job_name(job)
        if out is not None:
            require("files", "bulkgrpc jobs rejections --out")
        if out is None:
            found = asyncio.run(_list(options, name, limit or LISTED))
        else:
            rows = asyncio.run(_write(options, name, out, limit))
    if out is not None:
        if as_json:
            console.print_json({"job": name, "file": str(out), "rows": rows})
        else:
            typer.echo(
                f"Wrote {rows:,} rejected records to {out}. Correct them, then: bulkgrpc load {out} --retry-of {name}"
            )
    elif as_json:
        for rejection in found:
            console.print_json(_document(rejection))
    else:
        console.print_table(_table(found))


async def _list(options: ConnectionOptions, name: str, limit: int) -> list[Rejection]:
    found: list[Rejection] = []
    # The record of a row that could not be read says which row it was, and why.
    async with (
        options.async_client() as client,
        aclosing(client.job(name).rejections(include_records=True)) as rejections,
    ):
        async for rejection in rejections:
            found.append(with_row(rejection))
            if len(found) == limit:
                break
    return found


async def _write(options: ConnectionOptions, name: str, out: Path, limit: int | None) -> int:
    from bulkgrpc.cli.files.rejected_records import RejectedRecordsFile  # noqa: PLC0415 - of the extra `files`

    async with options.async_client() as client:
        dataset = await client.get_dataset((await client.get_job(name)).dataset)
        with RejectedRecordsFile(out, dataset) as file:
            await _fill(client, name, file, limit)
            return file.rows


async def _fill(client: AsyncBulkClient, name: str, file: RejectedRecordsFile, limit: int | None) -> None:
    pending: list[Rejection] = []
    async with aclosing(client.job(name).rejections(include_records=True)) as rejections:
        async for rejection in rejections:
            pending.append(rejection)
            if len(pending) == _ROWS_PER_WRITE:
                await asyncio.to_thread(file.add, pending)
                pending = []
            if file.rows + len(pending) == limit:
                break
    if pending:
        await asyncio.to_thread(file.add, pending)


def _document(rejection: Rejection) -> dict[str, object]:
    return {
        "sequence": rejection.sequence,
        "record_index": rejection.record_index,
        "code": rejection.code,
        "field": rejection.field,
        "reason": rejection.reason,
    }


def _table(found: list[Rejection]) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for name in ("batch", "record"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("code", no_wrap=True)
    for name in ("field", "reason"):
        table.add_column(name, overflow="fold")
    for one in found:
        table.add_row(f"{one.sequence:,}", f"{one.record_index:,}", one.code, one.field, one.reason)
    return table
