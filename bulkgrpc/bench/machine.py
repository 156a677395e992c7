"""The machine and the versions of a run: without them, figures mean nothing."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

from bulkgrpc.postgres.probe import server_version
from bulkgrpc.stack.jars import KAFKA_VERSION


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine and the versions. load_average: of the last minute before the run; above 0.5, something else ran."""

    cores: int
    cpu: str
    memory_gib: float
    system: str
    python: str
    postgres: str
    kafka: str
    load_average: float


def describe(postgres: str) -> Machine:
    """Describe this machine, and the PostgreSQL server at `postgres`. Raises PostgresError."""
    return Machine(
        cores=psutil.cpu_count() or 1,
        cpu=_cpu(Path("/proc/cpuinfo")),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        postgres=server_version(postgres),
        kafka=KAFKA_VERSION,
        load_average=round(psutil.getloadavg()[0], 2),
    )


def _cpu(information: Path) -> str:
    lines = information.read_text().splitlines() if information.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())
