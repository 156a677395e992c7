"""Write `bulkgrpc/stack/kafka-jars.sha256`: every jar that `kafka-pom.xml` needs, with its SHA-256. Needs Maven.

python -m tools.kafka_jars
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from pathlib import Path

STACK = Path(__file__).resolve().parent.parent / "bulkgrpc" / "stack"
TIMEOUT_S = 600


def main() -> None:
    """Resolve the jars with Maven, whose choice among versions is the reference, and write the list."""
    with tempfile.TemporaryDirectory() as text:
        libs = Path(text)
        layout = ["-DincludeScope=runtime", "-Dmdep.useRepositoryLayout=true", f"-DoutputDirectory={libs}"]
        call = ["mvn", "-B", "-q", "-f", str(STACK / "kafka-pom.xml"), "dependency:copy-dependencies", *layout]
        subprocess.run(call, check=True, timeout=TIMEOUT_S)
        jars = sorted(libs.rglob("*.jar"))
        lines = [f"{hashlib.sha256(jar.read_bytes()).hexdigest()}  {jar.relative_to(libs)}\n" for jar in jars]
    (STACK / "kafka-jars.sha256").write_text("".join(lines))


if __name__ == "__main__":
    main()
