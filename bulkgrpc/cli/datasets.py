"""The commands `datasets register`, `plan`, `list`, `versions`, `show`, `delete`, `infer`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import typer
from google.protobuf.descriptor_pb2 import MessageOptions
from rich.table import Table

from bulkgrpc.cli import console
from bulkgrpc.cli.connecting import SERVER, Caller, JsonOption, ServerOption, TenantOption, TlsCaOption, TokenOption
from bulkgrpc.cli.files import inference
from bulkgrpc.cli.files.opening import Format, format_of
from bulkgrpc.cli.files.problems import FileProblem
from bulkgrpc.cli.files.readers import read_csv, read_parquet
from bulkgrpc.client import Dataset, DatasetPlan
from bulkgrpc.datasets.columns import InvalidDataset
from bulkgrpc.datasets.definition import find_message
from bulkgrpc.datasets.sources import compile_proto, message_types
from bulkgrpc.model import is_dataset
from bulkgrpc.v1 import options_pb2

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode="markdown", help="Bind Protobuf messages to tables."
)


@app.command("register")
def register(
    file: Annotated[Path, typer.Argument(help="The .proto file.", show_default=False)],
    *,
    message: Annotated[
        str, typer.Option(help="Full name of the message. Default: every message with a dataset option.")
    ] = "",
    include: Annotated[
        Path | None, typer.Option(help="Folder that the file's imports are below. Default: its own.")
    ] = None,
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register the messages of a .proto file as datasets, and make their tables.

    A message is a dataset if it says so: `option (bulkgrpc.v1.dataset) = {table: "readings" key: ["id"]};` after
    `import "bulkgrpc/v1/options.proto";`, which need not be on your disk. Doing it again changes nothing; a changed
    message becomes the next version.

        bulkgrpc datasets register readings.proto

    With --json, one object a line.
    """
    with console.failures():
        descriptors = compile_proto(file, include)
        names = [message] if message else annotated(descriptors, file)
        with Caller(server, tenant, token, tls_ca).client() as client:
            registered = [client.register_dataset(descriptors, name) for name in names]
    _print(registered, as_json=as_json)


@app.command("plan")
def plan(
    file: Annotated[Path, typer.Argument(help="The .proto file.", show_default=False)],
    *,
    message: Annotated[
        str, typer.Option(help="Full name of the message. Default: every message with a dataset option.")
    ] = "",
    include: Annotated[
        Path | None, typer.Option(help="Folder that the file's imports are below. Default: its own.")
    ] = None,
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what `register` would do, as SQL, and do nothing.

        bulkgrpc datasets plan readings.proto

    With --json, one object a line.
    """
    with console.failures():
        descriptors = compile_proto(file, include)
        names = [message] if message else annotated(descriptors, file)
        with Caller(server, tenant, token, tls_ca).client() as client:
            plans = [client.plan_dataset(descriptors, name) for name in names]
    for planned in plans:
        _print_plan(planned, as_json=as_json)


@app.command("versions")
def versions(
    name: Annotated[str, typer.Argument(help="The dataset's name.", show_default=False)],
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """List a dataset's versions, the newest first. With --json, one object a line.

    bulkgrpc datasets versions weather
    """
    with console.failures(), Caller(server, tenant, token, tls_ca).client() as client:
        found = list(client.list_dataset_versions(name))
    _print(found, as_json=as_json)


@app.command("list")
def list_datasets(
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the datasets by name. With --json, one object a line.

    bulkgrpc datasets list
    """
    with console.failures(), Caller(server, tenant, token, tls_ca).client() as client:
        datasets = list(client.list_datasets())
    _print(datasets, as_json=as_json)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="The dataset's name.", show_default=False)],
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a dataset's columns, with the fields they are filled from and their types, and how it is treated.

    bulkgrpc datasets show weather
    """
    with console.failures(), Caller(server, tenant, token, tls_ca).client() as client:
        dataset = client.get_dataset(name)
    if as_json:
        console.print_json(console.dataset_document(dataset))
        return
    title = f"{dataset.name}, version {dataset.version} ({dataset.message_type})"
    table = Table("column", "field", "type", "null", "key", title=title, caption=console.treatment(dataset))
    for column in dataset.columns:
        key = str(dataset.primary_key.index(column.name) + 1) if column.name in dataset.primary_key else ""
        table.add_row(column.name, column.field, column.type, "yes" if column.nullable else "", key)
    console.print_table(table)


@app.command("delete")
def delete(
    name: Annotated[str, typer.Argument(help="The dataset's name.", show_default=False)],
    *,
    drop_table: Annotated[bool, typer.Option("--drop-table", help="Drop its table too, with all its rows.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a dataset. Its table stays, with its rows, unless you say otherwise.

        bulkgrpc datasets delete weather --yes

    Refused while jobs of it have not ended. Registering it again makes the version after the last one.
    """
    what = f"dataset {name} and the table {name} with all its rows" if drop_table else f"dataset {name}"
    if not yes:
        typer.confirm(f"Delete {what}?", abort=True, err=True)
    with console.failures(), Caller(server, tenant, token, tls_ca).client() as client:
        client.delete_dataset(name, drop_table=drop_table)
    if as_json:
        console.print_json({"deleted": name, "table_dropped": drop_table})
    else:
        typer.echo(f"Deleted {what}." if drop_table else f"Deleted {what}; its table stays.")


@app.command("infer")
def infer(
    file: Annotated[Path, typer.Argument(help="A CSV or Parquet file.", show_default=False)],
    *,
    key: Annotated[
        str, typer.Option(help="Columns that identify a row, with commas. Default: found in the file.")
    ] = "",
    table: Annotated[str, typer.Option(help="Name of the table. Default: the file's.")] = "",
    null: Annotated[
        list[str] | None, typer.Option(help='Text of a CSV file that means "no value". Default: "", NA.')
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a .proto for the rows of a file, to be looked through, registered, and the file loaded.

        bulkgrpc datasets infer weather.csv > weather.proto

    The types are the narrowest that all values fit; a column in which a value is missing is `optional`. With --json, an
    object with the text as `proto`.
    """
    with console.failures():
        text = infer_proto(file, nulls=("", "NA") if null is None else tuple(null), key=key, table=table)
    if as_json:
        console.print_json({"proto": text})
    else:
        typer.echo(text, nl=False)


def infer_proto(file: Path, *, nulls: tuple[str, ...], key: str, table: str) -> str:
    """Return the text of a `.proto` for a file's rows. Raises FileProblem, FileNotFoundError."""
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}")
    match format_of(file):
        case Format.CSV:
            blocks = read_csv(file)
        case Format.PARQUET:
            blocks, nulls = read_parquet(file), ()
        case other:
            raise FileProblem(f"{file.name}: nothing is inferred from a {other} file, but from CSV and Parquet")
    tables = [block.table for block in blocks]
    if not tables:
        raise FileProblem(f"{file.name}: the file has no rows to tell the types by")
    name = table or re.sub(r"[^a-z0-9_]+", "_", file.stem.lower()).strip("_")
    if not is_dataset(name):
        raise FileProblem(f"{file.name}: {name!r} is no name for a table: say one with --table")
    names = tuple(part.strip() for part in key.split(",") if part.strip())
    try:
        fields, found = inference.infer(pa.concat_tables(tables), nulls=nulls, key=names)
    except FileProblem as problem:
        raise FileProblem(f"{file.name}: {problem}") from None
    message = "".join(part.capitalize() for part in name.split("_"))
    return inference.proto_text(message, name, fields, found, file.name)


def annotated(descriptors: bytes, file: Path) -> list[str]:
    """Return the messages of a file that have a dataset option. Raises InvalidDataset if none has."""
    names = [name for name in message_types(descriptors) if _has_option(descriptors, name)]
    if not names:
        raise InvalidDataset(
            "message_type",
            f"no message of {file.name} is a dataset: add `option (bulkgrpc.v1.dataset) = "
            '{table: "…" key: ["…"]};` to one',
        )
    return names


def _has_option(descriptors: bytes, message_type: str) -> bool:
    # The pool is not the generated code's: read the extension by parsing the options again with our class.
    options = find_message(descriptors, message_type).GetOptions().SerializeToString()
    return MessageOptions.FromString(options).HasExtension(options_pb2.dataset)  # type: ignore[arg-type]


def _print_plan(planned: DatasetPlan, *, as_json: bool) -> None:
    dataset = planned.dataset
    if as_json:
        document = {**console.dataset_document(dataset), "statements": list(planned.statements)}
        console.print_json({**document, "new_version": planned.new_version})
        return
    what = "new version" if planned.new_version else "already there:"
    typer.echo(f"-- {dataset.name}, {what} {dataset.version}")
    for statement in planned.statements:
        typer.echo(f"{statement};")


def _print(datasets: list[Dataset], *, as_json: bool) -> None:
    if as_json:
        for dataset in datasets:
            console.print_json(console.dataset_document(dataset))
        return
    table = Table("dataset", "version", "message", "key", "columns")
    for dataset in datasets:
        key = ", ".join(dataset.primary_key)
        table.add_row(dataset.name, str(dataset.version), dataset.message_type, key, str(len(dataset.columns)))
    console.print_table(table)
