"""The command `jobs rejections`: what could not be applied, shown, or written to a file to be mended."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from bulkgrpc.cli import console
from bulkgrpc.cli.connecting import SERVER, Caller, JsonOption, ServerOption, TenantOption, TlsCaOption, TokenOption
from bulkgrpc.cli.files.mending import MendingFile
from bulkgrpc.client import AsyncBulkClient, Rejection

SHOWN = 50
_AT_ONCE = 1000


def rejections(
    job: Annotated[str, typer.Argument(metavar="JOB", help="`tenants/…/jobs/…`, or the id alone.", show_default=False)],
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the records to a .csv or .jsonl file, to be mended.", show_default=False
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Most rejections. Default: 50, with --out all.", show_default=False)
    ] = None,
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the records of a job that could not be applied, and why. With --json, one object a line.

        bulkgrpc jobs rejections tenants/default/jobs/0b6ec6dc-…

    With --out they go to a file with the dataset's fields and the columns _sequence, _record_index, _code, _field and
    _reason; a record that is no message at all has its bytes in record_base64. Mend the file and submit it:

        bulkgrpc jobs rejections JOB --out bad.csv && bulkgrpc load bad.csv --retry-of JOB
    """
    with console.failures():
        caller = Caller(server, tenant, token, tls_ca)
        name = caller.job_name(job)
        if out is None:
            found = asyncio.run(_list(caller, name, limit or SHOWN))
        else:
            rows = asyncio.run(_write(caller, name, out, limit))
    if out is not None:
        if as_json:
            console.print_json({"job": name, "file": str(out), "rows": rows})
        else:
            typer.echo(f"{rows:,} rejected records in {out}. Mend them, then: bulkgrpc load {out} --retry-of {name}")
    elif as_json:
        for rejection in found:
            console.print_json(_document(rejection))
    else:
        console.print_table(_table(found))


async def _list(caller: Caller, name: str, limit: int) -> list[Rejection]:
    found: list[Rejection] = []
    async with caller.async_client() as client, aclosing(client.job(name).rejections()) as given:
        async for rejection in given:
            found.append(rejection)
            if len(found) == limit:
                break
    return found


async def _write(caller: Caller, name: str, out: Path, limit: int | None) -> int:
    async with caller.async_client() as client:
        dataset = await client.get_dataset((await client.get_job(name)).dataset)
        with MendingFile(out, dataset) as file:
            await _fill(client, name, file, limit)
            return file.rows


async def _fill(client: AsyncBulkClient, name: str, file: MendingFile, limit: int | None) -> None:
    held: list[Rejection] = []
    async with aclosing(client.job(name).rejections(with_records=True)) as given:
        async for rejection in given:
            held.append(rejection)
            if len(held) == _AT_ONCE:
                await asyncio.to_thread(file.add, held)
                held = []
            if file.rows + len(held) == limit:
                break
    if held:
        await asyncio.to_thread(file.add, held)


def _document(rejection: Rejection) -> dict[str, object]:
    return {
        "sequence": rejection.sequence,
        "record_index": rejection.record_index,
        "code": rejection.code,
        "field": rejection.field,
        "reason": rejection.reason,
    }


def _table(found: list[Rejection]) -> Table:
    table = Table()
    for name in ("batch", "record"):
        table.add_column(name, justify="right")
    for name in ("code", "field", "reason"):
        table.add_column(name, overflow="fold")
    for one in found:
        table.add_row(f"{one.sequence:,}", f"{one.record_index:,}", one.code, one.field, one.reason)
    return table
