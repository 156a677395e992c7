"""Commands that are imported only when they are called: some take a second to load, some need an extra."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from bulkgrpc.cli import extras


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command is defined: `module:attribute` in this package, a function or a typer app of subcommands.

    extra: what must be installed to run it, "" for nothing.
    """

    target: str
    panel: str | None = None
    extra: str = ""
    options: tuple[tuple[str, Any], ...] = ()

    def load(self, name: str, parent: str = "bulkgrpc") -> Any:
        """Import the command. Without its extra, it shows its help and does nothing else."""
        absent = extras.missing(self.extra)
        if absent:
            extras.stand_in(absent)
        module, attribute = self.target.split(":")
        found = getattr(importlib.import_module(f"bulkgrpc.cli.{module}"), attribute)
        if isinstance(found, typer.Typer):
            app = found
            app.info.rich_help_panel = self.panel
        else:
            app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
            app.command(name, rich_help_panel=self.panel, **dict(self.options))(found)
        command: Any = get_command(app)
        command.name = name
        command.rich_help_panel = self.panel
        return extras.refusing(command, self.extra, f"{parent} {name}") if absent else command


def group_with(commands: Mapping[str, Command]) -> type[TyperGroup]:
    """Return the class of a group that has these commands after its own, in this order."""

    class LazyGroup(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return [*super().list_commands(ctx), *commands]

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            command = commands.get(cmd_name)
            found = super().get_command(ctx, cmd_name)
            return found if command is None else command.load(cmd_name, ctx.command_path)

    return LazyGroup
