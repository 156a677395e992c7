"""The options of `load` and `datasets infer` that say how to read a file."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from bulkgrpc.cli.files import Dialect, FileError, FileOptions, Format, Rules, TextForms, format_of
from bulkgrpc.cli.files.file_sets import expanded
from bulkgrpc.tabular.text_values import EPOCH_US

RETRY_NULLS = ("",)
"""`jobs rejections` writes an empty cell for null, and a text "NA" unchanged."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read a file, as the command line says it. Each field is an option."""

    file_format: Annotated[
        Format | None,
        typer.Option("--format", help="Format of the file. Default: by the suffix of its name.", show_default=False),
    ] = None
    delimiter: Annotated[
        str,
        typer.Option(
            metavar="CHAR",
            help="CSV: what separates cells. Default: the most frequent of comma, semicolon, tab and | in the header.",
        ),
    ] = ""
    quote: Annotated[str, typer.Option(metavar="CHAR", help='CSV: what encloses cells; "" for nothing.')] = '"'
    escape: Annotated[
        str, typer.Option(metavar="CHAR", help="CSV: what precedes a quote within a cell. Default: the quote itself.")
    ] = ""
    encoding: Annotated[str, typer.Option(help="CSV, JSON: encoding of the text, for example latin-1.")] = "utf-8"
    skip_rows: Annotated[int, typer.Option(min=0, help="CSV: lines to skip before the header.")] = 0
    no_header: Annotated[bool, typer.Option("--no-header", help="CSV: the first row is a record.")] = False
    columns: Annotated[
        str, typer.Option(metavar="NAME,…", help="CSV: names of the columns, instead of those in the header.")
    ] = ""
    rename: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=FIELD", help="Field of a column. Repeatable.", show_default=False),
    ] = None
    null: Annotated[
        list[str] | None,
        typer.Option(
            help="CSV: text of a cell without quotes that means null, besides an empty cell, NA and PostgreSQL's "
            "mark of null. Repeatable.",
            show_default=False,
        ),
    ] = None
    decimal: Annotated[str, typer.Option(metavar="CHAR", help="CSV: decimal mark of numbers.")] = "."
    thousands: Annotated[
        str, typer.Option(metavar="CHAR", help="CSV: mark between groups of three digits. Default: none.")
    ] = ""
    time_format: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="Form of times and dates that are text, as Python's strptime reads it, for example %d.%m.%Y. Default: "
            "ISO 8601.",
        ),
    ] = ""
    epoch: Annotated[
        str,
        typer.Option(metavar="s|ms|us|ns", help="Unit of times that are numbers since 1970. Default: refuse them."),
    ] = ""

    def options(self, file: Path, batch_rows: int = 1000, rules: Rules | None = None) -> FileOptions:
        """Return the options for a file. Raises FileError for an unknown suffix, BadParameter for a wrong option."""
        self._check()
        rules = rules or Rules()
        tab = "\t" if {".tsv", ".tab"} & {suffix.lower() for suffix in file.suffixes} else ""
        nulls = RETRY_NULLS if rules.corrected else Dialect().nulls
        dialect = Dialect(
            self.delimiter.replace(r"\t", "\t") or tab,
            self.quote,
            self.escape,
            self.skip_rows,
            not self.no_header,
            tuple(name.strip() for name in self.columns.split(",") if name.strip()),
            tuple(dict.fromkeys((*nulls, *(self.null or [])))),
        )
        forms = TextForms(self.decimal, self.thousands, self.time_format, self.epoch)
        rules = replace(rules, forms=forms, renames=self._renames())
        return FileOptions(self.file_format or format_of(file), batch_rows, dialect, self.encoding, rules)

    def files(
        self, paths: Sequence[Path], batch_rows: int, rules: Rules, *, reject_bad_rows: bool
    ) -> list[tuple[Path, FileOptions]]:
        """Return the files that paths name, with the options of each. Raises FileError, BadParameter."""
        found = [
            (path, replace(self.options(path, batch_rows, rules), reject_bad_rows=reject_bad_rows))
            for path in expanded(paths)
        ]
        if rules.corrected and len(found) > 1:
            # The key of a retry is derived from one file.
            raise FileError("--retry-of takes one file")
        return found

    def _check(self) -> None:
        for name in ("delimiter", "quote", "escape", "decimal", "thousands"):
            if len(getattr(self, name).replace(r"\t", "\t")) > 1:
                raise typer.BadParameter("it is one character", param_hint=f"--{name}")
        if self.epoch and self.epoch not in EPOCH_US:
            raise typer.BadParameter("it is one of s, ms, us, ns", param_hint="--epoch")
        if not self.decimal or self.decimal == self.thousands:
            raise typer.BadParameter("it is a character other than --thousands", param_hint="--decimal")

    def _renames(self) -> dict[str, str]:
        pairs = [pair.rpartition("=") for pair in self.rename or []]
        if any(not (column and field) for column, _, field in pairs):
            raise typer.BadParameter("it is COLUMN=FIELD", param_hint="--rename")
        return {column: field for column, _, field in pairs}


def with_reading(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options in place of its parameter `reading`."""
    own = inspect.signature(command).parameters
    hints = get_type_hints(command, include_extras=True)
    types = get_type_hints(Reading, include_extras=True)
    more = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=types[one.name])
        for one in fields(Reading)
    ]

    @functools.wraps(command)
    def run(*positional: Any, **given: Any) -> None:
        reading = Reading(**{one.name: given.pop(one.name) for one in fields(Reading)})
        command(*positional, **given, reading=reading)

    kept = [one.replace(annotation=hints[name]) for name, one in own.items() if name != "reading"]
    signature = inspect.Signature([*kept, *more], return_annotation=None)
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in signature.parameters.values()}
    return run
