"""The command `datasets apply`: a folder of protos is what the datasets should be."""

from __future__ import annotations

import enum
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

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
from bulkgrpc.cli.plan_table import plan_document, print_plan
from bulkgrpc.cli.proto_folder import DatasetSource, ProtoError, read_folder
from bulkgrpc.client import BulkClient, BulkError, DatasetPlan, Reason, Refused

EXIT_CHANGES = 3
EXIT_REFUSED = 4
_OF_THE_CALLER = (Reason.NO_TOKEN, Reason.INVALID_TOKEN, Reason.MISSING_SCOPE)


class Action(enum.StrEnum):
    """What applying a folder does with a dataset."""

    CREATE = "create"
    CHANGE = "change"
    KEEP = "keep"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Step:
    """A dataset of the folder. planned: None if the server refused it. applied: whether this run registered it."""

    source: DatasetSource
    action: Action
    planned: DatasetPlan | None
    applied: bool = False

    @property
    def name(self) -> str:
        """The dataset's name; that of its message if the server refused it."""
        return self.source.message_type if self.planned is None else self.planned.dataset.name


@dataclass(frozen=True, slots=True)
class FolderPlan:
    """What applying a folder does, and the errors for which nothing of it is done."""

    steps: Sequence[Step]
    errors: Sequence[ProtoError]

    @property
    def changes(self) -> list[Step]:
        """The datasets that are created or changed."""
        return [step for step in self.steps if step.action in (Action.CREATE, Action.CHANGE)]


def apply(
    folder: Annotated[Path, typer.Argument(help="The folder of .proto files.", metavar="DIR", show_default=False)],
    *,
    plan: Annotated[bool, typer.Option("--plan", help="Only show the plan.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    include: Annotated[
        Path | None, typer.Option(help="Folder that imports are relative to: DIR or above it. Default: DIR.")
    ] = None,
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register the datasets of a folder of protos: create what is new, change what differs, keep the rest.

    The command shows the plan first, and asks. If one file or dataset is refused, nothing is applied, and all errors
    are shown. A second run has nothing to do. Datasets that are not in the folder stay as they are.

    For example, and as two steps of CI/CD:

        bulkgrpc datasets apply protos

        bulkgrpc datasets apply protos --plan

        bulkgrpc datasets apply protos --yes

    Exit codes: 0 nothing to do, or applied; 3 with --plan: there are changes; 4 refused; 1 any other failure: what was
    done before it is shown, and a second run does the rest.
    """
    with console.failures():
        found = read_folder(folder, include)
        with ConnectionOptions(server, tenant, token, tls_ca).client() as client:
            planned = FolderPlan((), found.errors) if found.errors else make_plan(client, found.datasets)
            if not as_json:
                _show(planned)
            if planned.errors or plan or not planned.changes:
                if as_json:
                    console.print_json(_document(planned, planned.steps))
                _end(planned, as_json=as_json)
            _confirm(planned, yes=yes)
            steps, failure = carry_out(client, planned)
    if as_json:
        console.print_json(_document(planned, steps, failure))
    _conclude(planned, steps, failure, as_json=as_json)


def make_plan(client: BulkClient, sources: Sequence[DatasetSource]) -> FolderPlan:
    """Ask the server what registering each message would do. Raises BulkError if it cannot say."""
    registered = {dataset.name for dataset in client.list_datasets()}
    steps: list[Step] = []
    errors: list[ProtoError] = []
    for source in sources:
        try:
            planned = client.plan_dataset(source.descriptors, source.message_type)
        except Refused as refused:
            if refused.retriable or refused.reason in _OF_THE_CALLER:
                raise
            steps.append(Step(source, Action.REFUSE, None))
            errors.append(source.error(refused.message, refused.field))
            continue
        name = planned.dataset.name
        reasons = list(planned.refusals)
        twin = next((step.source for step in steps if step.planned and step.name == name), None)
        if twin is not None:
            reasons.append(f"dataset {name} is also {twin.message_type} of {twin.file}:{twin.line}: name another table")
        errors.extend(source.error(reason) for reason in reasons)
        steps.append(Step(source, _action(planned, registered) if not reasons else Action.REFUSE, planned))
    return FolderPlan(steps, errors)


def _action(planned: DatasetPlan, registered: set[str]) -> Action:
    if not planned.new_version:
        return Action.KEEP
    return Action.CHANGE if planned.dataset.name in registered else Action.CREATE


def carry_out(client: BulkClient, planned: FolderPlan) -> tuple[list[Step], BulkError | None]:
    """Register what the plan creates and changes, in its order, up to the first failure.

    Returns all steps, those that were applied as registered; and the failure.
    """
    steps, failure = list(planned.steps), None
    for index, step in enumerate(steps):
        if failure is not None or step.planned is None or step.action is Action.KEEP:
            continue
        try:
            dataset = client.register_dataset(step.source.descriptors, step.source.message_type)
        except BulkError as error:
            failure = error
        else:
            steps[index] = replace(step, applied=True, planned=replace(step.planned, dataset=dataset))
    return steps, failure


def _show(planned: FolderPlan) -> None:
    if planned.steps:
        console.print_table(plan_of_folder(planned.steps))
    for step in planned.changes:
        assert step.planned is not None  # noqa: S101 — what changes has a plan
        typer.echo("")
        print_plan(step.planned, as_json=False)
    for error in planned.errors:
        typer.echo(str(error), err=True)


def plan_of_folder(steps: Sequence[Step]) -> Table:
    """Return what becomes of each dataset, a row a dataset."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("action", no_wrap=True)
    table.add_column("dataset", overflow="fold")
    table.add_column("version", justify="right", no_wrap=True)
    table.add_column("message", overflow="fold")
    table.add_column("file", overflow="fold")
    for step in steps:
        source, planned = step.source, step.planned
        version = "" if planned is None else str(planned.dataset.version)
        name = "" if planned is None else step.name
        table.add_row(step.action.value, name, version, source.message_type, f"{source.file}:{source.line}")
    return table


def _end(planned: FolderPlan, *, as_json: bool) -> None:
    """Exit as a plan says that is not carried out."""
    if planned.errors:
        console.fail(f"nothing was applied: {_count(len(planned.errors), 'error')}", EXIT_REFUSED)
    if planned.changes:
        raise typer.Exit(EXIT_CHANGES)
    if not as_json:
        typer.echo(f"Nothing to do: {_count(len(planned.steps), 'dataset')} unchanged.")
    raise typer.Exit(0)


def _confirm(planned: FolderPlan, *, yes: bool) -> None:
    if yes:
        return
    if not _asks():
        raise console.CommandFailed("nothing was applied: without a terminal to ask on, pass --yes, or --plan")
    created = sum(step.action is Action.CREATE for step in planned.steps)
    changed = len(planned.changes) - created
    typer.confirm(f"Create {_count(created, 'dataset')} and change {changed}?", abort=True, err=True)


def _asks() -> bool:
    return sys.stdin.isatty()


def _conclude(planned: FolderPlan, steps: Sequence[Step], failure: BulkError | None, *, as_json: bool) -> None:
    done = [step for step in steps if step.applied]
    if not as_json:
        for step in done:
            assert step.planned is not None  # noqa: S101 — what was applied has a plan
            typer.echo(f"Applied {step.name}, version {step.planned.dataset.version}.")
    if failure is None:
        return
    failed, *rest = (step for step in steps if step in planned.changes and not step.applied)
    left = f"; not tried: {', '.join(step.name for step in rest)}" if rest else ""
    console.fail(
        f"{failed.name} was not applied: {failure.message}; {len(done)} of {len(planned.changes)} changes were "
        f"applied{left}. Run the command again: it does what is left"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _document(planned: FolderPlan, steps: Sequence[Step], failure: BulkError | None = None) -> dict[str, object]:
    return {
        "datasets": [_step_document(step) for step in steps],
        "errors": [asdict(error) for error in planned.errors],
        "failure": None if failure is None else {"reason": failure.reason, "message": failure.message},
    }


def _step_document(step: Step) -> dict[str, object]:
    source = step.source
    found = {"file": source.file, "line": source.line, "message_type": source.message_type}
    planned = {"plan": None if step.planned is None else plan_document(step.planned)}
    return {**found, "action": step.action.value, "applied": step.applied, **planned}
