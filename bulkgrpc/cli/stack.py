"""The commands `up`, `down`, `status` and `stack-install`: Kafka, PostgreSQL and Valkey on this machine."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress as Display
from rich.progress import SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from bulkgrpc.stack import (
    Addresses,
    PartState,
    PartStatus,
    Phase,
    Ports,
    Progress,
    Stack,
    StackError,
    default_data_dir,
    install,
)
from bulkgrpc.stack.secure import SecureStack, is_secure, without_tls

NOT_ALL_RUNNING = 3
"""The exit code of `status` when a part does not run."""

DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Directory of the stack's data. Default: $BULKGRPC_DATA_DIR if it is set; otherwise /var/lib/bulkgrpc for "
        "root, and the user's data directory for other users."
    ),
]
Secure = Annotated[
    bool,
    typer.Option(
        "--secure",
        help="Start them with TLS and passwords; certificates and secrets are made at the first start, in the data "
        "directory.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="TCP port. 0: the port of the last start, or a free port.")]

_NAMES = {"kafka": "Kafka", "postgres": "PostgreSQL", "redis": "Valkey"}


def up(
    data_dir: DataDir = None,
    kafka_port: Port = 0,
    postgres_port: Port = 0,
    redis_port: Port = 0,
    secure: Secure = False,
    as_json: AsJson = False,
) -> None:
    """Start Kafka, PostgreSQL and Valkey on this machine, and wait until they are ready. For development and tests.

    They run in the background until `bulkgrpc down`. A part that already runs is not restarted. A part that crashed
    starts with the data that it had.

    On stdout the command prints one `export` line per part, in the order Kafka, PostgreSQL, Valkey. Everything else
    goes to stderr, so a shell can evaluate stdout.

    For example:

        eval "$(bulkgrpc up)"

    With --secure, it also prints the settings of servers and workers (security of Kafka, certificate, key set) and of
    clients (authority, tenant, a token for 30 days). A secure stack stays secure in later calls without it.

    With --json, the command prints one JSON object instead.
    """
    with _errors():
        stack = _stack(data_dir, Ports(kafka_port, postgres_port, redis_port), secure=secure)
        start_s = time.monotonic()
        for line in without_tls() if isinstance(stack, SecureStack) else ():
            typer.echo(f"note: {line}", err=True)
        if as_json:
            addresses = stack.up()
            _print_json(
                {
                    "data_dir": str(stack.data_dir),
                    "addresses": asdict(addresses),
                    "environment": _environment(stack),
                    "seconds": round(time.monotonic() - start_s, 3),
                }
            )
            return
        addresses = _up_with_display(stack)
        console = Console(stderr=True)
        console.print(_address_table(addresses))
        console.print(f"Ready in {time.monotonic() - start_s:.1f} s. Data: {stack.data_dir}", highlight=False)
        for name, value in _environment(stack).items():
            typer.echo(f"export {name}={shlex.quote(value)}")


def down(
    data_dir: DataDir = None,
    delete: Annotated[bool, typer.Option("--delete", help="Also delete all data of the stack.")] = False,
    as_json: AsJson = False,
) -> None:
    """Shut down Kafka, PostgreSQL and Valkey. The data stays, unless you pass --delete.

    For example:

        bulkgrpc down

    To start without topics and tables:

        bulkgrpc down --delete && bulkgrpc up

    With --json, the command prints one JSON object.
    """
    with _errors():
        stack = _stack(data_dir)
        stopped = stack.down()
        if delete:
            stack.destroy()
    if as_json:
        _print_json({"data_dir": str(stack.data_dir), "stopped": stopped, "deleted": delete})
        return
    names = ", ".join(_NAMES[name] for name in stopped)
    typer.echo(f"Stopped {names}." if names else "Nothing was running.")
    if delete:
        typer.echo(f"Deleted the data in {stack.data_dir}.")


def status(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show the state, process ID, start time and address of Kafka, PostgreSQL and Valkey.

    For example, to start the stack only if it does not run:

        bulkgrpc status >/dev/null || bulkgrpc up

    Exit codes: 0 all parts run; 1 the state cannot be read; 3 not all parts run.
    """
    with _errors():
        stack = _stack(data_dir)
        parts = stack.status()
    running = all(part.state is PartState.RUNNING for part in parts)
    if as_json:
        _print_json({"data_dir": str(stack.data_dir), "running": running, "parts": [_as_dict(part) for part in parts]})
    else:
        Console().print(_status_table(parts))
    if not running:
        raise typer.Exit(NOT_ALL_RUNNING)


def stack_install(as_json: AsJson = False) -> None:
    """Download Kafka's JAR files, so that `up` needs no network: 44 MB, once per user.

    Maven downloads them if it is installed, with the mirrors of its settings; else Python does. Each file is compared
    with a list of hashes. They are kept in the user's cache directory: see XDG_CACHE_HOME.

    For example, in a container image:

        pip install "bulkgrpc[stack]" && bulkgrpc stack-install

    With --json, the command prints one JSON object.
    """
    with _errors():
        start_s = time.monotonic()
        install()
        seconds = round(time.monotonic() - start_s, 3)
    if as_json:
        _print_json({"installed": True, "seconds": seconds})
    else:
        typer.echo(f"Kafka is installed ({seconds:.1f} s).")


@contextmanager
def _errors() -> Iterator[None]:
    """Turn a failure into one line on stderr and exit code 1."""
    try:
        yield
    except (StackError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def _stack(data_dir: Path | None, ports: Ports | None = None, *, secure: bool = False) -> Stack:
    directory = data_dir or default_data_dir()
    if secure or is_secure(directory):
        return SecureStack(directory, ports)
    return Stack(directory, ports or Ports())


def _environment(stack: Stack) -> dict[str, str]:
    return stack.environment() if isinstance(stack, SecureStack) else stack.addresses.environment()


def _up_with_display(stack: Stack) -> Addresses:
    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description:<11}"),
        TextColumn("{task.fields[phase]:<11}"),
    )
    with Display(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as display:
        tasks = {name: display.add_task(title, total=1, phase="waiting") for name, title in _NAMES.items()}

        def show(progress: Progress) -> None:
            _show(display, tasks[progress.part], progress.phase)

        return stack.up(show)


def _show(display: Display, task: TaskID, phase: Phase) -> None:
    display.update(task, phase=phase.value, completed=int(phase is Phase.READY))
    if phase in (Phase.READY, Phase.FAILED):
        display.stop_task(task)


def _address_table(addresses: Addresses) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("part", no_wrap=True)
    table.add_column("address", overflow="fold")
    for name, address in asdict(addresses).items():
        table.add_row(_NAMES[name], address)
    return table


def _status_table(parts: list[PartStatus]) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for name in ("part", "state", "pid", "since"):
        table.add_column(name, no_wrap=True)
    table.add_column("address", overflow="fold")
    for part in parts:
        since = f"{part.since.astimezone():%Y-%m-%d %H:%M:%S}" if part.since else ""
        table.add_row(_NAMES[part.name], part.state.value, str(part.pid or ""), since, part.address or "")
    return table


def _as_dict(part: PartStatus) -> dict[str, object]:
    return {**asdict(part), "since": part.since.isoformat() if part.since else None}


def _print_json(document: dict[str, object]) -> None:
    typer.echo(json.dumps(document))
