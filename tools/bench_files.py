r"""Measures `bulkgrpc load` beside `psql \copy` of the same CSV file into an equal table, and `datasets infer` of it.

    .venv/bin/python -m tools.bench_files --rows 10500000 --rounds 3 --file /var/tmp/readings.csv

The rounds alternate, each into an empty table after a checkpoint. Compare the ratio: rates depend on the machine. These
rows are about 1 GB of CSV. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from bulkgrpc.bench import environment, service_processes
from bulkgrpc.bench.observe import wait_group_balanced
from bulkgrpc.datasets import definition, sources
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.stack.postgres_owner import binaries

TABLE = "fleet_readings"
COPY_TABLE = "copied_readings"
TENANT = "bench"
_BLOCK_ROWS = 500_000
_FIRST_US = 1_767_225_600_000_000


def dataset() -> Dataset:
    """Return the example dataset with four lanes, so that several workers write one job."""
    file = sources.proto_root() / "examples/v1/sensors.proto"
    return definition.define(sources.compile_proto(file), "examples.v1.FleetReading")


def write_csv(path: Path, rows: int) -> None:
    """Write readings with distinct keys, in the order of time."""
    zoned = pa.timestamp("us", "UTC")
    schema = pa.schema([("sensor_id", pa.string()), ("value", pa.float64()), ("sampled_at", zoned)])
    places = (f"site-{n:04}/building-{n % 7}/floor-{n % 13:02}/room-{n % 97:03}/temperature" for n in range(1000))
    names = pa.array(list(places))
    with pyarrow.csv.CSVWriter(path, schema) as writer:
        for first in range(0, rows, _BLOCK_ROWS):
            numbers = np.arange(first, min(first + _BLOCK_ROWS, rows))
            columns = [names.take(pa.array(numbers % 1000)), pa.array(numbers * 0.25)]
            writer.write(pa.table([*columns, pa.array(_FIRST_US + numbers * 1000, zoned)], schema=schema))


def timed(command: list[str], variables: dict[str, str]) -> tuple[float, float, str]:
    """Run a command. Returns its seconds, the MB of its largest resident set, and its output. Raises on failure."""
    start_s = time.perf_counter()
    with subprocess.Popen(command, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # noqa: S101 — narrows the type: it is piped
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {process.returncode}")
    return time.perf_counter() - start_s, usage.ru_maxrss / 1000, output


def measure(path: Path, rows: int, rounds: int, workers: int) -> dict[str, object]:
    """Return the seconds of each round and their ratio, and the seconds and MB of `infer`."""
    cli = str(Path(sys.executable).with_name("bulkgrpc"))
    infer_s, infer_mb, _ = timed([cli, "datasets", "infer", str(path)], {})
    seconds: dict[str, list[float]] = {"psql": [], "load": []}
    with (
        environment.prepared(None, (dataset(),)) as prepared,
        prepared.deployment("files", 4) as deployment,
        service_processes.workers(deployment, workers, prepared.directory),
        service_processes.server(deployment, prepared.directory) as (_, address),
        prepared.connection() as connection,
    ):
        psql = [str(binaries(prepared.directory, None) / "psql"), prepared.postgres, "-qXc"]
        connection.execute(f"CREATE TABLE {COPY_TABLE} (LIKE {TABLE} INCLUDING ALL)".encode())
        connection.execute(f"ALTER TABLE {COPY_TABLE} ALTER tenant SET DEFAULT '{TENANT}'".encode())
        copy = rf"\copy {COPY_TABLE} (sensor_id, value, sampled_at) FROM '{path}' (FORMAT csv, HEADER)"
        service = {"BULKGRPC_SERVER": address, "BULKGRPC_TENANT": TENANT}
        load = [cli, "load", str(path), "--dataset", TABLE, "--again", "--json", "--deadline", "3600"]
        wait_group_balanced(deployment, workers)
        for _ in range(rounds):
            for name, command in (("psql", [*psql, copy]), ("load", load)):
                connection.execute(f"TRUNCATE {TABLE}, {COPY_TABLE}".encode())
                connection.execute(b"CHECKPOINT")
                taken_s, _, output = timed(command, service)
                seconds[name].append(round(taken_s, 2))
                if name == "load" and json.loads(output)["job"]["counts"]["written"] != rows:
                    raise SystemExit(f"not all rows were written: {output}")
    ratios = [psql_s / load_s for psql_s, load_s in zip(seconds["psql"], seconds["load"], strict=True)]
    sizes = {"rows": rows, "bytes": path.stat().st_size, "workers": workers}
    found = {"seconds": seconds, "ratio": round(statistics.median(ratios), 3), "ratios": [round(r, 3) for r in ratios]}
    return {**sizes, **found, "infer": {"seconds": round(infer_s, 2), "mb": round(infer_mb)}}


def main() -> None:
    """Run the measurement and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_500_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--file", type=Path, required=True, help="where to write the CSV file; it is deleted at the end"
    )
    given = parser.parse_args()
    write_csv(given.file, given.rows)
    try:
        sys.stdout.write(json.dumps(measure(given.file, given.rows, given.rounds, given.workers)) + "\n")
    finally:
        given.file.unlink()


if __name__ == "__main__":
    main()
