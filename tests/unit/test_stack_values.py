from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import psutil
import pytest

from bulkgrpc.stack import (
    Addresses,
    PartState,
    Stack,
    StackError,
    default_data_dir,
    install,
    jars,
    kafka,
    postgres_owner,
)
from bulkgrpc.stack import ports as stack_ports
from bulkgrpc.stack.process import Identity, await_end, identify, last_line, living
from bulkgrpc.stack.state import State, StateFile


def test_addresses_are_passed_on_as_environment_variables() -> None:
    assert Addresses("k:1", "postgresql://p", "redis://r").environment() == {
        "BULKGRPC_KAFKA": "k:1",
        "BULKGRPC_POSTGRES": "postgresql://p",
        "BULKGRPC_REDIS": "redis://r",
    }


def test_a_process_is_identified_by_pid_and_start_time() -> None:
    me = identify(os.getpid())
    assert me is not None
    process = living(me)
    assert process is not None
    assert process.pid == os.getpid()
    assert living(Identity(me.pid, me.started_s - 60)) is None
    assert living(None) is None


def test_waiting_for_a_running_process_ends_at_the_deadline() -> None:
    assert not await_end([psutil.Process()], 0.01)
    assert await_end([], 0.01)


def test_the_last_line_of_a_log_skips_stack_traces(tmp_path: Path) -> None:
    log = tmp_path / "some.log"
    log.write_text("started\nERROR cannot bind\n\tat java.base/Net.bind\nCaused by: java.net.BindException\n\n")
    assert last_line(log) == "ERROR cannot bind"
    assert last_line(tmp_path / "none.log") == ""


def test_the_state_file_is_private_and_is_read_as_written(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    assert file.read() == State()
    with file.locked():
        file.change(lambda state: state.with_ports({"kafka": 9092}))
        written = file.change(lambda state: state.with_process("kafka", Identity(7, 1.5)))
    assert file.read() == written == State({"kafka": 9092}, {"kafka": Identity(7, 1.5)})
    assert stat.S_IMODE((tmp_path / "stack.json").stat().st_mode) == 0o600
    with file.locked():
        assert file.change(lambda state: state.with_process("kafka", None)).processes == {}


@pytest.mark.parametrize("content", ["", "[]", '{"version": 99}', '{"version": 1, "ports": {}}'])
def test_a_broken_state_file_is_named_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "stack.json").write_text(content)
    with pytest.raises(StackError, match=r"stack\.json is not readable .*: delete it"):
        StateFile(tmp_path).read()


def test_a_port_in_use_is_not_free_and_its_program_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not stack_ports.is_free(port)
        assert f"(pid {os.getpid()})" in stack_ports.holder(port)
    assert stack_ports.is_free(stack_ports.choose_free())


@pytest.mark.parametrize(
    ("text", "major"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_392"', 8),
        ('openjdk version "25"', 25),
        ("", 0),
    ],
)
def test_javas_major_version_is_parsed_in_old_and_new_forms(text: str, major: int) -> None:
    assert jars.java_major(text) == major


def test_mavens_first_error_is_reported() -> None:
    assert jars.first_error("[INFO] x\n[ERROR] \n[ERROR] no route\n[ERROR] Re-run Maven with -X\n") == "no route"
    assert jars.first_error("") == "its log has no error"


def test_missing_java_is_named_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    jars.java.cache_clear()
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(StackError, match="apt-get install openjdk-17-jre-headless maven"):
        install()


def test_missing_maven_is_named_with_its_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    jars.java()
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(StackError, match="no `mvn`: apt-get install"):
        install()


def test_a_cluster_id_has_kafkas_form() -> None:
    identifiers = {kafka.cluster_id() for _ in range(200)}
    assert len(identifiers) == 200
    assert all(len(text) == 22 and not text.startswith("-") for text in identifiers)


def test_the_broker_listens_on_loopback_only(tmp_path: Path) -> None:
    text = kafka.Kafka(tmp_path, 64).settings({"kafka": 1, "kafka_controller": 2})
    assert "\nlisteners=PLAINTEXT://127.0.0.1:1,CONTROLLER://127.0.0.1:2\n" in text


def test_the_data_directory_can_be_set_by_a_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BULKGRPC_DATA_DIR", str(tmp_path))
    assert default_data_dir() == tmp_path


def test_a_stack_never_started_is_absent_and_stays_so(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "none")
    assert [part.state for part in stack.status()] == [PartState.ABSENT] * 3
    assert stack.down() == []
    stack.destroy()
    with pytest.raises(StackError, match="never started"):
        _ = stack.addresses
    assert not (tmp_path / "none").exists()


def test_destroying_a_directory_that_is_no_stack_removes_nothing(tmp_path: Path) -> None:
    (tmp_path / "kafka").mkdir()
    Stack(tmp_path).destroy()
    assert (tmp_path / "kafka").is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="PostgreSQL runs as another user only for root")
def test_a_private_directory_is_refused_and_left_private(tmp_path: Path) -> None:
    private = tmp_path / "home"
    private.mkdir(mode=0o700)
    with pytest.raises(StackError, match="choose a --data-dir outside private directories"):
        postgres_owner.check_reach(private, postgres_owner.postgres_owner())
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
