"""Prints what registering a dataset would do."""

from __future__ import annotations

from dataclasses import asdict

import typer
from rich.table import Table

from bulkgrpc.cli import console
from bulkgrpc.client import DatasetPlan


def print_plan(planned: DatasetPlan, *, as_json: bool) -> None:
    """Print a plan: the SQL; of a table that exists, what becomes of each column, and why it is refused."""
    dataset = planned.dataset
    if as_json:
        console.print_json(plan_document(planned))
        return
    what = "new version" if planned.new_version else "unchanged, version"
    typer.echo(f"-- {dataset.name}, {what} {dataset.version}")
    for statement in planned.statements:
        typer.echo(f"{statement};")
    if dataset.existing is None:
        return
    typer.echo(f"-- bound to {dataset.table}, which is not changed; {console.tenancy(dataset.existing)}")
    if planned.columns:
        console.print_table(_table(planned))
    for refusal in planned.refusals:
        typer.echo(f"refused: {refusal}")


def plan_document(planned: DatasetPlan) -> dict[str, object]:
    """Return a plan as `--json` prints it."""
    dataset = planned.dataset
    document = {**console.dataset_document(dataset), "statements": list(planned.statements)}
    fits = [asdict(fit) for fit in planned.columns]
    bound = {} if dataset.existing is None else {"column_fits": fits, "refusals": list(planned.refusals)}
    return {**document, "new_version": planned.new_version, **bound}


def _table(planned: DatasetPlan) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for name in ("column", "field", "written as", "in the table"):
        table.add_column(name, overflow="fold")
    table.add_column("verdict", no_wrap=True)
    table.add_column("note", overflow="fold")
    for fit in planned.columns:
        # Why a column is refused is below the table, in full.
        note = "" if fit.verdict == "refused" and fit.written_type else fit.note
        table.add_row(fit.column, fit.field, fit.written_type, fit.table_type, fit.verdict, note)
    return table
