from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources

import pytest
import typer

from bulkgrpc.cli import extras
from bulkgrpc.datasets import sources
from bulkgrpc.datasets.rules import validate_file

LIGHT = ("bulkgrpc.client", "bulkgrpc.cli.app", "bulkgrpc.cli.jobs", "bulkgrpc.cli.datasets")
HEAVY = {name for packages in extras.PACKAGES.values() for name in packages} | {"datafusion"}
SHOW = "import json, sys; import {}; print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"


@pytest.mark.parametrize("module", LIGHT)
def test_the_client_and_its_commands_import_no_package_of_an_extra(module: str) -> None:
    shown = subprocess.run([sys.executable, "-c", SHOW.format(module)], capture_output=True, text=True, check=True)
    # gRPC itself imports its sibling packages where they are installed.
    assert set(json.loads(shown.stdout)) & HEAVY <= {"grpc_health", "grpc_reflection"}


def test_the_packages_of_an_extra_are_those_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert extras.missing("stack") == []
    assert extras.missing("") == []
    monkeypatch.setitem(extras.PACKAGES, "files", ("json", "a_package_that_is_not_there"))
    assert extras.missing("files") == ["a_package_that_is_not_there"]


def test_a_missing_extra_is_named_with_its_installation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(extras.PACKAGES, "files", ("a_package_that_is_not_there",))
    with pytest.raises(typer.Exit) as end:
        extras.require("files", "bulkgrpc load")
    assert end.value.exit_code == 1
    line = 'error: bulkgrpc load needs the extra "files": pip install "bulkgrpc[files]"\n'
    assert capsys.readouterr() == ("", line)


def test_the_packaged_rules_of_protovalidate_are_those_of_its_wheel() -> None:
    packaged = resources.files(sources.__package__).joinpath("validate.binpb").read_bytes()
    assert packaged == validate_file()
