"""The commands `datasets register`, `plan`, `list`, `versions`, `show`, `delete`, `infer`.

`datasets pause`, `resume` and `discard` have their own module; so have `infer` and `apply`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.descriptor_pb2 import MessageOptions
from rich.table import Table

from bulkgrpc.cli import console
from bulkgrpc.cli.apply import apply
from bulkgrpc.cli.blocks import discard, pause, resume, status_document, status_table
from bulkgrpc.cli.connection_options import (
    SERVER,
    ConnectionOptions,
    JsonOption,
    ServerOption,
    TenantOption,
    TlsCaOption,
    TokenOption,
)
from bulkgrpc.cli.lazy import Command, group_with
from bulkgrpc.cli.plan_table import print_plan
from bulkgrpc.client import Dataset
from bulkgrpc.datasets.columns import InvalidDataset
from bulkgrpc.datasets.definition import find_message
from bulkgrpc.datasets.sources import compile_proto, message_types
from bulkgrpc.v1 import options_pb2

app = typer.Typer(
    cls=group_with({"infer": Command("infer:infer", extra="files")}),
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Register Protobuf messages as datasets, each bound to a table; list, show, pause and delete them.\n\n"
    "For example:\n\n    bulkgrpc datasets register readings.proto && bulkgrpc datasets show readings\n\n"
    "Every command has its own `--help`.",
)


@app.command("register")
def register(
    file: Annotated[Path, typer.Argument(help="The .proto file.", show_default=False)],
    *,
    message: Annotated[
        str, typer.Option(help="Full name of the message. Default: every message that has a dataset option.")
    ] = "",
    include: Annotated[
        Path | None, typer.Option(help="Directory that imports are relative to. Default: the directory of the file.")
    ] = None,
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register the messages of a .proto file as datasets, and create or change their tables.

    A message is a dataset if it names its table and key:

        option (bulkgrpc.v1.dataset) = {table: "readings" key: ["id"]};

    The file imports `bulkgrpc/v1/options.proto`, which comes with this package. Registering an unchanged message again
    changes nothing. A changed message becomes the next version.

    For example:

        bulkgrpc datasets register readings.proto

    With --json, the command prints one JSON object per line.
    """
    with console.failures():
        descriptors = compile_proto(file, include)
        names = [message] if message else annotated(descriptors, file)
        with ConnectionOptions(server, tenant, token, tls_ca).client() as client:
            registered = [client.register_dataset(descriptors, name) for name in names]
    _print(registered, as_json=as_json)


@app.command("plan")
def plan(
    file: Annotated[Path, typer.Argument(help="The .proto file.", show_default=False)],
    *,
    message: Annotated[
        str, typer.Option(help="Full name of the message. Default: every message that has a dataset option.")
    ] = "",
    include: Annotated[
        Path | None, typer.Option(help="Directory that imports are relative to. Default: the directory of the file.")
    ] = None,
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what `register` would do, without doing it: the SQL that it would run.

    For a table that exists: what fits, what is converted and what is refused, by column. The exit code is 1 if
    `register` would be refused.

    For example:

        bulkgrpc datasets plan readings.proto

    With --json, the command prints one JSON object per line.
    """
    with console.failures():
        descriptors = compile_proto(file, include)
        names = [message] if message else annotated(descriptors, file)
        with ConnectionOptions(server, tenant, token, tls_ca).client() as client:
            plans = [client.plan_dataset(descriptors, name) for name in names]
    for planned in plans:
        print_plan(planned, as_json=as_json)
    refused = [planned.dataset.name for planned in plans if planned.refusals]
    if refused:
        console.fail(f"`register` would be refused: the table of {', '.join(refused)} does not fit")


@app.command("versions")
def versions(
    name: Annotated[str, typer.Argument(help="The dataset's name.", show_default=False)],
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """List a dataset's versions, newest first.

    For example:

        bulkgrpc datasets versions weather

    With --json, the command prints one JSON object per line.
    """
    with console.failures(), ConnectionOptions(server, tenant, token, tls_ca).client() as client:
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
    """List the datasets by name.

    For example:

        bulkgrpc datasets list

    With --json, the command prints one JSON object per line.
    """
    with console.failures(), ConnectionOptions(server, tenant, token, tls_ca).client() as client:
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
    """Show a dataset: its columns with their fields and types, how its records are written, and whether they are.

    The state is `writable`, `blocked` (its table cannot be written), `isolating` (messages are applied in small slices
    to find the one at fault), `paused` or `discarding`. While it is not writable, its messages are parked.

    For example:

        bulkgrpc datasets show weather

    With --json, the command prints one JSON object.
    """
    with console.failures(), ConnectionOptions(server, tenant, token, tls_ca).client() as client:
        dataset, status = client.get_dataset(name), client.get_dataset_status(name)
    if as_json:
        console.print_json({**console.dataset_document(dataset), **status_document(status)})
        return
    title = f"{dataset.name}, version {dataset.version} ({dataset.message_type})"
    table = Table(title=title, caption=console.write_options(dataset), show_edge=False, pad_edge=False)
    for heading in ("column", "field", "type"):
        table.add_column(heading, overflow="fold")
    for heading in ("null", "key"):
        table.add_column(heading, no_wrap=True)
    for column in dataset.columns:
        key = str(dataset.primary_key.index(column.name) + 1) if column.name in dataset.primary_key else ""
        table.add_row(column.name, column.field, column.type, "yes" if column.nullable else "", key)
    console.print_table(table)
    console.print_table(status_table(status))


@app.command("delete")
def delete(
    name: Annotated[str, typer.Argument(help="The dataset's name.", show_default=False)],
    *,
    drop_table: Annotated[bool, typer.Option("--drop-table", help="Also drop its table, with all rows.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a dataset. Its table stays, with all rows, unless you pass --drop-table.

    The server refuses the call while the dataset has jobs that have not ended. If you register the dataset again, its
    version numbers continue.

    For example:

        bulkgrpc datasets delete weather --yes
    """
    what = f"dataset {name} and its table, with all rows" if drop_table else f"dataset {name}"
    if not yes:
        typer.confirm(f"Delete {what}?", abort=True, err=True)
    with console.failures(), ConnectionOptions(server, tenant, token, tls_ca).client() as client:
        client.delete_dataset(name, drop_table=drop_table)
    if as_json:
        console.print_json({"deleted": name, "table_dropped": drop_table})
    else:
        typer.echo(f"Deleted {what}." if drop_table else f"Deleted {what}; its table stays.")


app.command("pause")(pause)
app.command("resume")(resume)
app.command("discard")(discard)
app.command("apply")(apply)


def annotated(descriptors: bytes, file: Path) -> list[str]:
    """Return the names of a file's messages that have a dataset option. Raises InvalidDataset if none has."""
    names = [name for name in message_types(descriptors) if _has_option(descriptors, name)]
    if not names:
        raise InvalidDataset(
            "message_type",
            f"no message of {file.name} has a dataset option: add `option (bulkgrpc.v1.dataset) = "
            '{table: "…" key: ["…"]};` to one',
        )
    return names


def _has_option(descriptors: bytes, message_type: str) -> bool:
    # These descriptors are not the generated code's: parse the options again to read the extension.
    options = find_message(descriptors, message_type).GetOptions().SerializeToString()
    return MessageOptions.FromString(options).HasExtension(options_pb2.dataset)  # type: ignore[arg-type]


def _print(datasets: list[Dataset], *, as_json: bool) -> None:
    if as_json:
        for dataset in datasets:
            console.print_json(console.dataset_document(dataset))
        return
    table = Table(show_edge=False, pad_edge=False)
    for name in ("dataset", "message", "key"):
        table.add_column(name, overflow="fold")
    for name in ("version", "columns"):
        table.add_column(name, justify="right", no_wrap=True)
    for dataset in datasets:
        key = ", ".join(dataset.primary_key)
        table.add_row(dataset.name, dataset.message_type, key, str(dataset.version), str(len(dataset.columns)))
    console.print_table(table)
