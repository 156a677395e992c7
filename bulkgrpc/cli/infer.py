"""The command `datasets infer`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from bulkgrpc.cli import console
from bulkgrpc.cli.connection_options import JsonOption, TenantOption
from bulkgrpc.cli.extras import require
from bulkgrpc.cli.files import FileError, FileOptions, Format
from bulkgrpc.cli.files.inference import infer as propose
from bulkgrpc.cli.files.proto_file import proto_text
from bulkgrpc.cli.files.samples import read_sample
from bulkgrpc.cli.reading_options import Reading, with_reading
from bulkgrpc.model import is_dataset

SAMPLE_ROWS = 100_000


@with_reading
def infer(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="A CSV, JSON lines, Parquet or Arrow file. Without it: a table that exists.", show_default=False
        ),
    ] = None,
    *,
    key: Annotated[
        str,
        typer.Option(
            help="Columns that identify a row, separated by commas. Default: a column that is named like an identifier "
            "and unique, otherwise the smallest set of columns that is unique."
        ),
    ] = "",
    table: Annotated[
        str,
        typer.Option(help="Name of the table. Default: the file's name. Without a file: the table to read, as in SQL."),
    ] = "",
    tenant_column: Annotated[
        str, typer.Option(help="Of a table: the column that stores the tenant. Default: `tenant`, if the key has it.")
    ] = "",
    tenant: TenantOption = "",
    postgres: Annotated[
        str, typer.Option(envvar="BULKGRPC_POSTGRES", help="Of a table: libpq connection string.", show_default=False)
    ] = "",
    rows: Annotated[int, typer.Option(min=1, help="Rows to read from the beginning of the file.")] = SAMPLE_ROWS,
    read_all: Annotated[bool, typer.Option("--all", help="Read all rows. The file has to fit into memory.")] = False,
    as_json: JsonOption = False,
    reading: Reading,
) -> None:
    """Print a .proto file for the rows of a file, or for a table that exists.

    Each field has the narrowest type that gives back exactly the text that the file has; a column with a missing value
    is `optional`. Comments in the result say what to confirm. Check it, register it, then load the file.

    For example:

        bulkgrpc datasets infer weather.csv > weather.proto

    The file of a table binds a dataset to it. Columns that PostgreSQL fills have no field. If no column stores the
    tenant, the dataset takes the records of --tenant only:

        bulkgrpc datasets infer --table app.readings > readings.proto

    With --json, the command prints one JSON object, whose field `proto` has the text.
    """
    with console.failures():
        if file is None:
            text = _proto_of_table(postgres, table, tenant_column, tenant)
        else:
            text = infer_proto(file, reading.options(file), key=key, table=table, rows=0 if read_all else rows)
    if as_json:
        console.print_json({"proto": text})
    else:
        typer.echo(text, nl=False)


def _proto_of_table(postgres: str, table: str, tenant_column: str, tenant: str) -> str:
    require("service", "bulkgrpc datasets infer of a table")
    # Reading a file needs no driver of PostgreSQL.
    from bulkgrpc.cli.table_inference import Tenancy, infer_from_table  # noqa: PLC0415
    from bulkgrpc.ingest.identity import DEFAULT_TENANT  # noqa: PLC0415

    return infer_from_table(postgres, table, Tenancy(tenant_column, tenant or DEFAULT_TENANT))


def infer_proto(file: Path, options: FileOptions, *, key: str, table: str, rows: int = SAMPLE_ROWS) -> str:
    """Return the text of a `.proto` file for a file's first rows; rows: 0 for all. Raises FileError."""
    sample, source = read_sample(file, options, rows)
    stem = source.partition(".")[0]
    name = table or re.sub(r"[^a-z0-9_]+", "_", stem.lower()).strip("_")
    if not is_dataset(name):
        raise FileError(f"{source}: {name!r} is not a valid table name: set one with --table")
    names = tuple(part.strip() for part in key.split(",") if part.strip())
    try:
        proposal = propose(sample, names, numbers=options.format is Format.CSV, forms=options.rules.forms)
    except FileError as error:
        raise FileError(f"{source}: {error}") from None
    message = "".join(part.capitalize() for part in name.split("_"))
    return proto_text(message, name, proposal, source)
