"""Kafka's jars: downloaded once into a cache that all stacks of a user share, each checked by its SHA-256.

Maven downloads them if it is there, because it knows the user's mirrors and proxies; else `jgo` does, in Python. jgo
resolves no versions here: it would choose others than Maven. The list of the jars is `kafka-jars.sha256`, which
`tools.kafka_jars` writes.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath

import platformdirs

from bulkgrpc.stack.java import java
from bulkgrpc.stack.model import Phase, Progress, Report, StackError, unreported
from bulkgrpc.stack.space import MIB, of_user, require_space

KAFKA_VERSION = "4.2.2"
_DOWNLOAD_TIMEOUT_S = 600
_REQUEST_TIMEOUT_S = 30
_AT_ONCE = 8
_ROOM_BYTES = 64 * MIB
_ELSEWHERE = "set XDG_CACHE_HOME to a directory that you can write to"


@dataclass(frozen=True, slots=True)
class Jar:
    """A line of the list. path: in a Maven repository, `org/apache/kafka/kafka-raft/4.2.2/kafka-raft-4.2.2.jar`."""

    path: PurePosixPath
    sha256: str

    @property
    def coordinates(self) -> tuple[str, str, str]:
        """Group, artifact and version."""
        *group, artifact, version, _ = self.path.parts
        return ".".join(group), artifact, version


def install(report: Report = unreported) -> None:
    """Download Kafka's jars unless they exist: the only step of the stack that needs the network.

    About 44 MB and five seconds. Safe to call from many processes at the same time.
    Raises StackError if there is no Java, the cache cannot be written, or a jar cannot be downloaded or is another one.
    """
    start_s = time.monotonic()
    java()
    if not jars_directory().is_dir():
        report(Progress("kafka", Phase.INSTALLING, 0.0))
        _download(jars_directory())
    report(Progress("kafka", Phase.READY, time.monotonic() - start_s))


def jars_directory() -> Path:
    """Return the directory of the jars of this version's list. It may not exist yet.

    Raises StackError if the user has no home directory.
    """
    digest = hashlib.sha256(_resource("kafka-jars.sha256").encode()).hexdigest()[:12]
    cache = of_user(platformdirs.user_cache_path, "Kafka's jars", _ELSEWHERE)
    return cache / f"kafka-{KAFKA_VERSION}" / digest


def pinned() -> list[Jar]:
    """Return the jars of Kafka and its dependencies."""
    lines = (line.split() for line in _resource("kafka-jars.sha256").splitlines())
    return [Jar(PurePosixPath(path), sha256) for sha256, path in lines]


def check(libs: Path, jars: list[Jar]) -> None:
    """Raise StackError unless `libs` has these jars and nothing else."""
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in libs.iterdir()}
    expected = {jar.path.name: jar.sha256 for jar in jars}
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        raise StackError(
            f"Kafka's jars are not those that bulkgrpc was tested with: {', '.join(wrong[:3])} "
            f"({len(wrong)} differ from the list, by SHA-256): check the mirror that they come from"
        )


def first_error(maven_log: str) -> str:
    """Return Maven's first error line, which names the cause. Later ones are advice."""
    lines = (line.removeprefix("[ERROR]").strip() for line in maven_log.splitlines() if line.startswith("[ERROR]"))
    return next(filter(None, lines), "its log has no error")


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text()


def _download(target: Path) -> None:
    with _draft(target) as draft:
        _fetch(draft)
        check(draft / "libs", pinned())
        try:
            draft.rename(target)
        except OSError:
            # Another process renamed its copy first; the jars are the same.
            if not target.is_dir():
                raise


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """A new directory beside `target`, removed at the end. Errors of the file system name the cache directory."""
    draft = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        require_space(target.parent, _ROOM_BYTES, "Kafka's jars", _ELSEWHERE)
        draft = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
        yield draft
    except OSError as error:
        raise StackError(
            f"Kafka's jars cannot be stored in {target.parent} ({error.strerror or error}): {_ELSEWHERE}"
        ) from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def _fetch(draft: Path) -> None:
    maven = shutil.which("mvn")
    failure = ""
    if maven is not None:
        try:
            return _by_maven(maven, draft)
        except (subprocess.SubprocessError, OSError) as error:
            # Maven may lack a Java, or its settings a mirror: the other way may work.
            said = draft / "maven.log"
            reason = first_error(said.read_text(errors="replace")) if said.exists() else ""
            failure = f"; Maven: {reason or error}"
            shutil.rmtree(draft / "libs", ignore_errors=True)
    try:
        _by_python(draft)
    except StackError as error:
        raise StackError(f"{error}{failure}") from error


def _by_maven(maven: str, draft: Path) -> None:
    pom = draft / "pom.xml"
    pom.write_text(_resource("kafka-pom.xml"))
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={draft / 'libs'}"]
    with (draft / "maven.log").open("wb") as output:
        subprocess.run(
            [maven, "-B", "-Dstyle.color=never", "-f", str(pom), *goal],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=_DOWNLOAD_TIMEOUT_S,
            check=True,
        )


def _by_python(draft: Path) -> None:
    try:
        from jgo.maven import MavenContext  # noqa: PLC0415 - the package is an extra
    except ImportError as error:
        raise StackError("Kafka's jars need Maven, or: pip install 'bulkgrpc[stack]'") from error
    repository = MavenContext(repo_cache=draft / "repository", timeout=_REQUEST_TIMEOUT_S)
    libs = draft / "libs"
    libs.mkdir()

    def fetch(jar: Jar) -> None:
        group, artifact, version = jar.coordinates
        component = repository.project(group, artifact).at_version(version)
        try:
            component.artifact().resolve().rename(libs / jar.path.name)
        except (OSError, RuntimeError) as error:  # the errors of `requests` are OSErrors
            raise StackError(f"{jar.path.name} of Kafka could not be downloaded: {error}") from error

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        downloads = [threads.submit(fetch, jar) for jar in pinned()]
    for download in downloads:
        download.result()
    shutil.rmtree(draft / "repository")
