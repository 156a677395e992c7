"""What a run ran on: figures without it say nothing."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg

from bulkgrpc.stack.jars import KAFKA_VERSION


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine and the versions. load_average: over one minute, when the run began; above 0.5 something else ran."""

    cores: int
    cpu: str
    memory_gib: float
    system: str
    python: str
    postgres: str
    kafka: str
    load_average: float


def describe(postgres: str) -> Machine:
    """Describe this machine, and the server at `postgres`."""
    with psycopg.connect(postgres) as connection:
        version = connection.execute("SHOW server_version").fetchone()
    return Machine(
        cores=psutil.cpu_count() or 1,
        cpu=_cpu(Path("/proc/cpuinfo")),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        postgres=str(version[0]) if version else "unknown",
        kafka=KAFKA_VERSION,
        load_average=round(psutil.getloadavg()[0], 2),
    )


def _cpu(information: Path) -> str:
    lines = information.read_text().splitlines() if information.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
