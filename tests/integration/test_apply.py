"""`datasets apply`: a folder of protos against a real server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from bulkgrpc.cli import apply as module
from bulkgrpc.cli.app import app
from bulkgrpc.cli.apply import EXIT_CHANGES, EXIT_REFUSED
from bulkgrpc.cli.console import EXIT_FAILURE
from tests.integration.service_values import Command, Parts
from tests.unit.test_proto_folder import PLACE, dataset, write

pytest_plugins = ["tests.integration.service_parts"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for protos."""
    path = tmp_path / "protos"
    path.mkdir()
    return path


def applied(command: Command, folder: Path, *options: str, code: int = 0) -> Any:
    """Run the command with --json; return what it prints and check the exit code."""
    result = command("datasets", "apply", folder, *options, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def actions(document: Any) -> dict[str, tuple[str, bool]]:
    return {one["message_type"]: (one["action"], one["applied"]) for one in document["datasets"]}


def tables(parts: Parts) -> set[str]:
    return {name for (name,) in parts.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}


def test_a_folder_is_applied_and_a_second_run_has_nothing_to_do(command: Command, folder: Path, parts: Parts) -> None:
    located = dataset("ap_b", "  shared.Place place = 2;\n").replace(
        "import", 'import "shared/place.proto";\nimport', 1
    )
    write(folder, shared__place=PLACE, deep__b=located, a=dataset("ap_a"))
    new = {"Map_a": ("create", False), "Map_b": ("create", False)}
    assert actions(applied(command, folder, "--plan", code=EXIT_CHANGES)) == new
    assert not {"ap_a", "ap_b"} & tables(parts), "a plan does nothing"
    result = command("datasets", "apply", folder)
    assert result.exit_code == EXIT_FAILURE
    assert "without a terminal to ask on, pass --yes" in result.stderr
    assert not {"ap_a", "ap_b"} & tables(parts), "nothing is applied unasked"
    assert actions(applied(command, folder, "--yes")) == {"Map_a": ("create", True), "Map_b": ("create", True)}
    assert {"ap_a", "ap_b"} <= tables(parts)

    result = command("datasets", "apply", folder)
    assert (result.exit_code, "Nothing to do: 2 datasets unchanged." in result.stdout) == (0, True), result.output
    assert actions(applied(command, folder, "--plan")) == {"Map_a": ("keep", False), "Map_b": ("keep", False)}

    write(folder, a=dataset("ap_a", "  optional string remark = 2;\n"))
    result = command("datasets", "apply", folder, "--plan")
    assert result.exit_code == EXIT_CHANGES
    assert 'ALTER TABLE "public"."ap_a" ADD COLUMN "remark" text' in result.stdout
    changed = applied(command, folder, "--yes")
    assert actions(changed) == {"Map_a": ("change", True), "Map_b": ("keep", False)}
    assert [one["plan"]["version"] for one in changed["datasets"]] == [2, 1]
    assert command.json("datasets", "apply", folder)["errors"] == []


def test_one_bad_proto_keeps_the_folder_from_being_applied_and_all_errors_are_shown(
    command: Command, folder: Path, parts: Parts
) -> None:
    with psycopg.connect(parts.postgres, autocommit=True) as connection:
        connection.execute("CREATE TABLE bad_foreign (id text)")
    unfit = dataset("bad_bound").replace(
        "key:", 'existing_table: {table: "bad_foreign" tenant_not_stored: true} key:', 1
    )
    write(
        folder,
        a=dataset("good_a"),
        b=dataset("bad_b", "  string price = 2 [(bulkgrpc.v1.column).type = COLUMN_TYPE_INTEGER];\n"),
        c=dataset("bad_foreign"),
        d=unfit,
        e=dataset("good_a").replace("Mgood_a", "Twin"),
    )
    document = applied(command, folder, "--yes", code=EXIT_REFUSED)
    assert actions(document) == {
        "Mgood_a": ("create", False),
        "Mbad_b": ("refuse", False),
        "Mbad_foreign": ("refuse", False),
        "Mbad_bound": ("refuse", False),
        "Twin": ("refuse", False),
    }
    errors = {(one["file"], one["line"], one["field"]): one["message"] for one in document["errors"]}
    assert set(errors) == {
        ("b.proto", 6, "price"),
        ("c.proto", 3, "message_type"),
        ("d.proto", 3, ""),
        ("e.proto", 3, ""),
    }
    assert "belongs to no dataset" in errors["c.proto", 3, "message_type"]
    assert "dataset good_a is also Mgood_a of a.proto:3" in errors["e.proto", 3, ""]
    result = command("datasets", "apply", folder, "--plan")
    assert result.exit_code == EXIT_REFUSED
    assert "b.proto:6: Mbad_b.price: " in result.stderr
    assert "error: nothing was applied: 4 errors" in result.stderr
    write(folder, f="nonsense")
    document = applied(command, folder, "--yes", code=EXIT_REFUSED)
    assert [(one["file"], one["line"]) for one in document["errors"]] == [("f.proto", 1)]
    assert "good_a" not in tables(parts)


def test_a_failure_in_the_middle_says_what_was_done_and_a_second_run_does_the_rest(
    command: Command, folder: Path, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, a=dataset("mid_a"), b=dataset("mid_b"), c=dataset("mid_c"))
    carry_out = module.carry_out

    def late(client: Any, planned: Any) -> Any:
        # Between the plan and its execution, somebody else makes a table of that name.
        with psycopg.connect(parts.postgres, autocommit=True) as connection:
            connection.execute("CREATE TABLE mid_b (id text)")
        return carry_out(client, planned)

    with monkeypatch.context() as patched:
        patched.setattr(module, "carry_out", late)
        result = command("datasets", "apply", folder, "--yes")
    assert result.exit_code == EXIT_FAILURE
    assert "Applied mid_a, version 1." in result.stdout
    assert "mid_b was not applied: table mid_b exists and belongs to no dataset" in result.stderr
    assert "1 of 3 changes were applied; not tried: mid_c" in result.stderr
    with psycopg.connect(parts.postgres, autocommit=True) as connection:
        connection.execute("DROP TABLE mid_b")
    document = applied(command, folder, "--yes")
    assert actions(document) == {"Mmid_a": ("keep", False), "Mmid_b": ("create", True), "Mmid_c": ("create", True)}


def test_on_a_terminal_the_command_asks(
    command: Command, folder: Path, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, a=dataset("ap_asked"))
    monkeypatch.setattr(module, "_asks", lambda: True)
    environment = {"BULKGRPC_SERVER": command.server, "BULKGRPC_TENANT": command.tenant, "COLUMNS": "80"}
    arguments = ["datasets", "apply", str(folder)]
    refused = CliRunner().invoke(app, arguments, input="n\n", env=environment)
    assert (refused.exit_code, "ap_asked" in tables(parts)) == (EXIT_FAILURE, False)
    assert "Create 1 dataset and change 0?" in refused.stderr
    agreed = CliRunner().invoke(app, arguments, input="y\n", env=environment)
    assert (agreed.exit_code, "ap_asked" in tables(parts)) == (0, True)
