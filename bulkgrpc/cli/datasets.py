"""The commands `datasets register`, `datasets list`, `datasets show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.descriptor_pb2 import MessageOptions
from rich.table import Table

from bulkgrpc.cli import console
from bulkgrpc.cli.connecting import SERVER, Caller, JsonOption, ServerOption, TenantOption, TlsCaOption, TokenOption
from bulkgrpc.client import Dataset
from bulkgrpc.datasets.columns import InvalidDataset
from bulkgrpc.datasets.definition import find_message
from bulkgrpc.datasets.sources import compile_proto, message_types
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
    `import "bulkgrpc/v1/options.proto";`, which need not be on your disk. Doing it again changes nothing.

        bulkgrpc datasets register readings.proto

    With --json, one object a line.
    """
    with console.failures():
        descriptors = compile_proto(file, include)
        names = [message] if message else annotated(descriptors, file)
        with Caller(server, tenant, token, tls_ca).client() as client:
            registered = [client.register_dataset(descriptors, name) for name in names]
    _print(registered, as_json=as_json)


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
    """Show a dataset's columns: their names, the fields they are filled from, their types.

    bulkgrpc datasets show weather
    """
    with console.failures(), Caller(server, tenant, token, tls_ca).client() as client:
        dataset = client.get_dataset(name)
    if as_json:
        console.print_json(console.dataset_document(dataset))
        return
    table = Table("column", "field", "type", "null", "key", title=f"{dataset.name} ({dataset.message_type})")
    for column in dataset.columns:
        key = str(dataset.primary_key.index(column.name) + 1) if column.name in dataset.primary_key else ""
        table.add_row(column.name, column.field, column.type, "yes" if column.nullable else "", key)
    console.print_table(table)


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
