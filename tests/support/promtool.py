"""promtool, which checks Prometheus's rules: the system's, or that of Debian's package, unpacked and not installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

TIMEOUT_S = 120


def promtool(directory: Path) -> Path | None:
    """Return promtool, unpacked below `directory` if the system has none; None if it cannot be had."""
    if (found := shutil.which("promtool")) is not None:
        return Path(found)
    try:
        subprocess.run(["apt-get", "download", "-qq", "prometheus"], cwd=directory, check=True, timeout=TIMEOUT_S)
        (package,) = directory.glob("prometheus_*.deb")
        subprocess.run(["dpkg", "-x", str(package), str(directory)], check=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return directory / "usr" / "bin" / "promtool"
