"""Print the directory of the jars of Kafka 3.9, downloaded by Maven below the cache directory if they are not there.

python -m tools.older_kafka
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

import platformdirs

from bulkgrpc.stack.jars import KAFKA_VERSION

VERSION = "3.9.1"
"""Pinned; Maven compares each file with the checksum of the repository."""
TIMEOUT_S = 300


def jars() -> Path:
    """Return the directory of the jars. Raises SystemExit if Maven is missing, or fails."""
    target = platformdirs.user_cache_path("bulkgrpc") / f"kafka-{VERSION}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix="kafka.", dir=target.parent))
        try:
            _download(draft)
            (draft / "libs").rename(target)
        finally:
            shutil.rmtree(draft)
    return target


def _download(directory: Path) -> None:
    pom = directory / "pom.xml"
    text = resources.files("bulkgrpc.stack").joinpath("kafka-pom.xml").read_text()
    pom.write_text(text.replace(f"<version>{KAFKA_VERSION}</version>", f"<version>{VERSION}</version>"))
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={directory / 'libs'}"]
    try:
        subprocess.run(
            ["mvn", "-B", "-q", "-Dstyle.color=never", "-f", str(pom), *goal],
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SystemExit(f"Kafka {VERSION} could not be downloaded by Maven: {error}") from error


if __name__ == "__main__":
    sys.stdout.write(f"{jars()}\n")
