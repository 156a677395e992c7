"""The command line without any server: help, usage, one line for what goes wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from bulkgrpc.cli import console, demo
from bulkgrpc.cli.app import app
from bulkgrpc.cli.console import CommandFailed
from bulkgrpc.client import JobState

COMMANDS = [
    ("demo",),
    ("load",),
    ("jobs", "get"),
    ("jobs", "list"),
    ("jobs", "watch"),
    ("jobs", "cancel"),
    ("jobs", "discard"),
    ("jobs", "delete"),
    ("jobs", "rejections"),
    ("jobs", "revert"),
    ("datasets", "register"),
    ("datasets", "plan"),
    ("datasets", "apply"),
    ("datasets", "versions"),
    ("datasets", "infer"),
    ("datasets", "list"),
    ("datasets", "show"),
    ("datasets", "delete"),
    ("datasets", "pause"),
    ("datasets", "resume"),
    ("datasets", "discard"),
    ("ledger", "show"),
    ("ledger", "adopt-topic"),
    ("ledger", "accept-loss"),
    ("migrate",),
    ("doctor",),
    ("lag",),
    ("tune",),
    ("up",),
    ("down",),
    ("status",),
    ("stack-install",),
    ("dlq", "list"),
    ("dlq", "show"),
    ("dlq", "redrive"),
    ("dlq", "discard"),
    ("bench",),
    ("bench", "memory"),
    ("bench", "policies"),
]
NOBODY = {
    "BULKGRPC_SERVER": "127.0.0.1:1",
    "BULKGRPC_POSTGRES": "postgresql://nobody@127.0.0.1:1/none?connect_timeout=2",
}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_help_of_every_command_shows_an_example_and_says_what_json_does(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    assert f"bulkgrpc {' '.join(command)}" in result.stdout.replace("Usage: bulkgrpc", "")
    assert "--json" in result.stdout
    assert "completion" not in result.stdout
    # Typer strips the indentation of a last paragraph, so an example must not be the last one.
    assert not [line for line in result.stdout.splitlines() if re.match(r" (bulkgrpc|eval) ", line)]


@pytest.mark.parametrize("command", ["server", "worker"])
def test_the_processes_are_commands_too_and_read_their_options_themselves(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["bulkgrpc"])
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "BULKGRPC_KAFKA" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("jobs", "list"),
        ("jobs", "get", "x"),
        ("jobs", "watch", "x"),
        ("jobs", "cancel", "x"),
        ("jobs", "discard", "x"),
        ("jobs", "delete", "x"),
        ("jobs", "rejections", "x"),
        ("jobs", "rejections", "x", "--out", "x.csv"),
        ("datasets", "list"),
        ("datasets", "show", "x"),
    ],
    ids=" ".join,
)
def test_without_a_server_every_command_is_one_line_and_exit_code_1(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*arguments, "--json"], env=NOBODY)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        "error: no server at 127.0.0.1:1: start one with `bulkgrpc server` or name another with --server"
    ]


def test_migrate_without_a_database_is_one_line_and_exit_code_1() -> None:
    result = CliRunner().invoke(app, ["migrate"], env=NOBODY)
    assert (result.exit_code, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nope",),
        ("load",),
        ("load", "x.csv"),
        ("load", "x.csv", "-d", "d", "--batch-rows", "0"),
        ("load", "x.csv", "-d", "d", "--ttl", "-1"),
        ("jobs", "get"),
        ("jobs", "list", "--state", "nope"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, list(arguments), env=NOBODY)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_a_label_without_a_value_is_wrong_usage(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("a\n1\n")
    result = CliRunner().invoke(app, ["load", str(file), "-d", "d", "--label", "novalue"], env=NOBODY)
    assert result.exit_code == 2
    assert "KEY=VALUE" in result.stderr


@pytest.mark.parametrize(
    ("state", "code"), [("PARTIALLY_SUCCEEDED", 3), ("FAILED", 4), ("CANCELLED", 5), ("EXPIRED", 5)]
)
def test_the_exit_code_tells_what_became_of_a_job(state: str, code: int) -> None:
    with pytest.raises(typer.Exit) as caught:
        console.exit_by_state(JobState[state])
    assert caught.value.exit_code == code


def test_success_is_exit_code_0() -> None:
    console.exit_by_state(JobState.SUCCEEDED)


def test_a_failure_of_many_lines_is_said_on_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), console.failures():
        raise CommandFailed("connection failed\n  is it running?")
    assert capsys.readouterr().err == "error: connection failed is it running?\n"


def test_a_mistake_of_ours_is_not_hidden_as_a_failure() -> None:
    with pytest.raises(ZeroDivisionError), console.failures():
        raise ZeroDivisionError


def test_the_demos_data_is_found_without_importing_its_package() -> None:
    folder = demo.data_folder()
    assert (folder / "weather.csv").is_file()
    assert (folder / "flights.csv.zip").is_file()


def test_the_demo_without_its_data_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["demo", "--data-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "pip install 'bulkgrpc[stack]'" in result.stderr.replace("\n", " ")


def test_printed_json_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"a": [1, None], "b": "ü"})
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"a": [1, None], "b": "ü"}
