"""The package as users get it: a wheel in a virtual environment of its own."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel; its dependencies are this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT], check=True, timeout=120)
    (wheel,) = folder.glob("bulkgrpc-*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    install = [*uv, "pip", "install", "--quiet", "--no-deps", "--python", str(python), str(wheel)]
    subprocess.run(install, check=True, timeout=120)
    # All but this environment's own editable install, which would bring the sources back in.
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        name = path.name.lower()
        if not name.startswith(("bulkgrpc", "_editable", "__editable__", "_bulkgrpc", "pip")) and path.suffix != ".pth":
            target = packages / path.name
            if not target.exists():
                target.symlink_to(path)
    return folder / "venv" / "bin"


@pytest.mark.parametrize("command", ["bulkgrpc", "bulkgrpc-server", "bulkgrpc-worker"])
def test_the_commands_start(installed: Path, command: str) -> None:
    done = subprocess.run(
        [installed / command, "--help"], cwd=installed, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_the_wheel_has_what_a_dataset_is_compiled_against(installed: Path) -> None:
    script = (
        "import bulkgrpc, pathlib; from bulkgrpc.datasets import sources, definition;"
        "root = sources.proto_root(); assert 'site-packages' in bulkgrpc.__file__, bulkgrpc.__file__;"
        "found = sources.compile_proto(root / 'examples/v1/sensors.proto');"
        "print(definition.define(found, 'examples.v1.SensorReading').name)"
    )
    done = subprocess.run(
        [installed / "python", "-c", script], cwd=installed, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "sensor_readings\n", done.stderr


def test_the_migrations_travel_with_the_wheel(installed: Path) -> None:
    script = "from bulkgrpc.postgres import schema; print(schema.newest_revision(), schema.MIGRATIONS.exists())"
    done = subprocess.run(
        [installed / "python", "-c", script], cwd=installed, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["0010", "True"], done.stderr
