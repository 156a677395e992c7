"""Submits tables: whatever gives its rows as Arrow columns becomes batches, natively, with the checks that files get.

pyarrow is imported when the first table is submitted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from bulkgrpc.client.config import ClientConfig
from bulkgrpc.client.errors import WrongInput
from bulkgrpc.client.model import Batch, name_and_version
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.tabular.rules import Rules


@runtime_checkable
class ArrowTable(Protocol):
    """A table or a stream of rows: of pyarrow, polars, pandas, DuckDB and others."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return its rows as a stream of the Arrow C interface."""


_IN_PYTHON = {
    "the file has": "the table has",
    "ignore such columns with --ignore-unknown-columns": "ignore such columns with Rules(ignore_unknown=True)",
    "load its default value with --missing-is-default": "submit its default value with Rules(missing_is_default=True)",
    "rename a column with --rename COLUMN=FIELD": 'rename a column with Rules(renames={"COLUMN": "FIELD"})',
    "name their field with --rename COLUMN=FIELD": 'name their field with Rules(renames={"COLUMN": "FIELD"})',
    "--rename: there": "renames: there",
    "use --rename": "use Rules(renames=...) for",
    "name it with --epoch s|ms|us|ns": 'name it with Rules(forms=TextForms(epoch="ms")), or "s", "us", "ns"',
    "for example --time-format %d.%m.%Y": 'for example Rules(forms=TextForms(time_format="%d.%m.%Y"))',
    "with --decimal , and marks of thousands with --thousands": (
        'with Rules(forms=TextForms(decimal=",")), and marks of thousands with its `thousands`'
    ),
}
"""What the command line calls an option, and what it is here."""


@dataclass(frozen=True, slots=True)
class TableSource:
    """A table to submit. rules: how its columns and values become fields."""

    table: ArrowTable
    rules: Rules = field(default_factory=Rules)


async def open_table(
    source: ArrowTable | TableSource,
    dataset: str | Dataset,
    get_dataset: Callable[[str], Awaitable[Dataset]],
    config: ClientConfig,
) -> tuple[Iterator[Batch], int]:
    """Return a table's batches, and the version of the dataset that they are made for.

    Raises WrongInput if `dataset` names a version that is not the newest one.
    """
    found = dataset if isinstance(dataset, Dataset) and dataset.descriptors else None
    if found is None:
        name, version = name_and_version(dataset)
        found = await get_dataset(name)
        if version not in (0, found.version):
            raise WrongInput(
                f"dataset {found.name} has version {found.version} now: for version {version}, give the Dataset that "
                "`register_dataset` returned"
            )
    source = source if isinstance(source, TableSource) else TableSource(source)
    return _batches(source, found, config.batch_records), found.version


def _batches(source: TableSource, dataset: Dataset, batch_records: int) -> Iterator[Batch]:
    """Yield batches that do not depend on how the table is cut into chunks.

    Raises WrongInput: for columns that do not match the fields, and for the first value that its field does not accept,
    with row, column and the way out.
    """
    try:
        from bulkgrpc.tabular.arrow import encoded  # noqa: PLC0415 — messages need no Arrow, and it takes 0.2 s
        from bulkgrpc.tabular.errors import NotRecords  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise WrongInput(f'tables need {error.name}: pip install "bulkgrpc[files]"') from error
    try:
        for payload, records in encoded(source.table, dataset, batch_records, source.rules):
            yield Batch(payload, records)
    except NotRecords as error:
        message = str(error)
        for option, parameter in _IN_PYTHON.items():
            message = message.replace(option, parameter)
        raise WrongInput(message) from error
