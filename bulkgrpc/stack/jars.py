"""Kafka's jars: downloaded once by Maven into a cache that all stacks of a user share."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from functools import cache
from importlib import resources
from pathlib import Path

import platformdirs

from bulkgrpc.stack.model import Phase, Progress, Report, StackError, unreported

KAFKA_VERSION = "4.2.2"
_JAVA_MIN = 17
_DOWNLOAD_TIMEOUT_S = 600
_FIX = "apt-get install openjdk-17-jre-headless maven"


def install(report: Report = unreported) -> None:
    """Download Kafka's jars unless they exist: the only step of the stack that needs the network.

    About 44 MB and five seconds. Safe to call from many processes at the same time.
    Raises StackError if Java or Maven is missing, or Maven fails.
    """
    start_s = time.monotonic()
    java()
    if not jars_directory().is_dir():
        report(Progress("kafka", Phase.INSTALLING, 0.0))
        _download(jars_directory())
    report(Progress("kafka", Phase.READY, time.monotonic() - start_s))


def jars_directory() -> Path:
    """Return the directory of the jars of this version's pom. It may not exist yet."""
    digest = hashlib.sha256(_pom().encode()).hexdigest()[:12]
    return platformdirs.user_cache_path("bulkgrpc") / f"kafka-{KAFKA_VERSION}" / digest


@cache
def java() -> str:
    """Return the `java` to run Kafka with. Raises StackError if there is none, or it is too old."""
    home = os.environ.get("JAVA_HOME")
    program = shutil.which("java", path=f"{home}/bin" if home else None) or shutil.which("java")
    if program is None:
        raise StackError(f"Kafka needs Java {_JAVA_MIN} or newer, and there is no `java`: {_FIX}")
    version = subprocess.run([program, "-version"], capture_output=True, text=True, check=False)
    major = java_major(version.stderr + version.stdout)
    if major < _JAVA_MIN:
        raise StackError(f"Kafka needs Java {_JAVA_MIN} or newer, and {program} is version {major}: {_FIX}")
    return program


def java_major(version_text: str) -> int:
    """Return the major version in the output of `java -version`; 0 if there is none."""
    match = re.search(r'version "(?:1\.)?(\d+)', version_text)
    return int(match.group(1)) if match else 0


def first_error(maven_log: str) -> str:
    """Return Maven's first error line, which names the cause. Later ones are advice."""
    lines = (line.removeprefix("[ERROR]").strip() for line in maven_log.splitlines() if line.startswith("[ERROR]"))
    return next(filter(None, lines), "its log has no error")


def _pom() -> str:
    return resources.files(__package__).joinpath("kafka-pom.xml").read_text()


def _download(target: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise StackError(f"Maven downloads Kafka's jars, and there is no `mvn`: {_FIX}")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        _copy_dependencies(maven, draft)
        draft.rename(target)
    except OSError:
        # Another process renamed its copy first; the jars are the same.
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _copy_dependencies(maven: str, directory: Path) -> None:
    pom = directory / "pom.xml"
    pom.write_text(_pom())
    log = directory.parent / "maven.log"
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={directory / 'libs'}"]
    with log.open("wb") as output:
        try:
            subprocess.run(
                [maven, "-B", "-Dstyle.color=never", "-f", str(pom), *goal],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=_DOWNLOAD_TIMEOUT_S,
                check=True,
            )
        except subprocess.SubprocessError as error:
            raise StackError(
                f"Maven could not download Kafka's jars: {first_error(log.read_text(errors='replace'))} (log: {log})"
            ) from error
