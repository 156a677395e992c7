"""Ways of writing side by side: our workers, bare COPY and staging by hand, in rounds, each from the same state.

One topic and one pair of workers for all: what is measured is a drain each, of jobs of another dataset.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from psycopg import sql

from bulkgrpc.bench import bare, drain, programs, readings, watch
from bulkgrpc.bench.bare import Baseline
from bulkgrpc.bench.contest import Contestant, ContestResults
from bulkgrpc.bench.ground import Connection, Ground, Place
from bulkgrpc.bench.model import Load, Rate, Report
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.ddl import table
from bulkgrpc.postgres import dedupe
from bulkgrpc.postgres.filters import make_filters
from bulkgrpc.settings import PREFIX

_NUMBER = sql.SQL("(value * 4)::bigint")
"""The number of a reading: `readings.batches` makes its value of it."""
_KEPT = sql.Identifier("bench_kept")


def run(ground: Ground, contestants: Sequence[Contestant], load: Load, report: Report) -> ContestResults:
    """Measure all contestants in `load.rounds` rounds. Raises BenchFailed."""
    payloads = _payloads(contestants, load)
    # Left alone the workers would set the size of their chunks, and what is written by hand could not have the same.
    same_size = {f"{PREFIX}CHUNK_ROWS_{bound}": str(load.chunk_rows) for bound in ("MIN", "MAX")}
    rounds = []
    with (
        ground.place("policies", load.tenants) as place,
        programs.workers(place, load.workers, ground.directory, same_size) as running,
        ground.connection() as connection,
    ):
        watch.group_settles(place, load.workers)
        report("warming up")
        _warm(place, running, connection, _ours(contestants), load, payloads)
        _constrain(connection, contestants)
        _keep(ground, connection, contestants, load)
        for number in range(1, load.rounds + 1):
            rates: dict[str, Rate] = {}
            for contestant in contestants:
                report(f"round {number} of {load.rounds}: {contestant.name}")
                _prepare(connection, contestant)
                _remember(connection, contestant, contestants, load)
                if contestant.by == "workers":
                    seconds = _drained_s(place, running, connection, contestant, load, payloads[contestant.name])
                    rates[contestant.name] = Rate(load.rows, seconds)
                else:
                    rates[contestant.name] = bare.written(ground.postgres, _baseline(contestant), load)
                    watch.check_table(connection, contestant.dataset, load.rows)
            rounds.append(rates)
    return ContestResults(load, tuple(contestants), tuple(rounds))


def steps(contestants: Sequence[Contestant], load: Load) -> int:
    """Return how many times `run` reports."""
    return len(contestants) * load.rounds + 1


def _ours(contestants: Sequence[Contestant]) -> list[Contestant]:
    return [contestant for contestant in contestants if contestant.by == "workers"]


def _baseline(contestant: Contestant) -> Baseline:
    return Baseline(contestant.dataset, contestant.batches, staged=contestant.by == "staging")


def _payloads(contestants: Sequence[Contestant], load: Load) -> dict[str, list[bytes]]:
    """Return the batches of a tenant's job, by contestant; encoded once where the messages are alike."""
    made: dict[object, list[bytes]] = {}
    found = {}
    for contestant in _ours(contestants):
        if contestant.batches not in made:
            codec = BatchCodec(contestant.dataset)
            made[contestant.batches] = contestant.batches(codec, 0, load.tenant_rows, load.batch_rows)
        found[contestant.name] = made[contestant.batches]
    return found


def _drained_s(
    place: Place,
    running: Sequence[programs.Program],
    connection: Connection,
    contestant: Contestant,
    load: Load,
    payloads: list[bytes],
) -> float:
    key = f"policies-{secrets.token_hex(4)}"
    planned = drain.plan(contestant.dataset, readings.tenants_of(load), key, payloads, load.batch_rows)
    seconds = drain.emptied_s(place, running, connection, planned, key)
    watch.check_counts(connection, contestant.dataset, key, load.tenants, contestant.counts(load))
    return seconds


def _warm(
    place: Place,
    running: Sequence[programs.Program],
    connection: Connection,
    contestants: Sequence[Contestant],
    load: Load,
    payloads: dict[str, list[bytes]],
) -> None:
    """Let every worker see every dataset: its codec is made, its rules are compiled."""
    for contestant in contestants:
        key = f"warm-{secrets.token_hex(4)}"
        batch = payloads[contestant.name][:1]
        drain.fill(place, drain.plan(contestant.dataset, readings.tenants_of(load), key, batch, load.batch_rows))
        watch.jobs_end(connection, key, load.tenants, needed=running)


def _constrain(connection: Connection, contestants: Sequence[Contestant]) -> None:
    """Empty every table; have some refuse rows; and keep the vacuum, which comes when it likes, away from all."""
    for contestant in _ours(contestants):
        name = table(contestant.dataset)
        connection.execute(sql.SQL("TRUNCATE {}").format(name))
        connection.execute(sql.SQL("ALTER TABLE {} SET (autovacuum_enabled = false)").format(name))
        if contestant.refused:
            check = sql.SQL("ALTER TABLE {} ADD CONSTRAINT bench_refuses CHECK ({} % {} <> 0)")
            connection.execute(check.format(name, _NUMBER, contestant.refused))


def _keep(ground: Ground, connection: Connection, contestants: Sequence[Contestant], load: Load) -> None:
    """Keep the readings in a table of their own, from which the keys that are to be there are taken."""
    first = contestants[0]
    bare.written(ground.postgres, _baseline(first), load)
    connection.execute(sql.SQL("CREATE UNLOGGED TABLE {} AS SELECT * FROM {}").format(_KEPT, table(first.dataset)))


def _prepare(connection: Connection, contestant: Contestant) -> None:
    """Put a contestant's table into the state in which it begins each round."""
    name = table(contestant.dataset)
    connection.execute(sql.SQL("TRUNCATE {}").format(name))
    if contestant.there:
        insert = sql.SQL("INSERT INTO {} SELECT * FROM {} WHERE {} % {} = 0")
        connection.execute(insert.format(name, _KEPT, _NUMBER, contestant.there))
    connection.execute(sql.SQL("VACUUM ANALYZE {}").format(name))
    connection.execute("CHECKPOINT")


def _remember(connection: Connection, contestant: Contestant, contestants: Sequence[Contestant], load: Load) -> None:
    """Have what is to be known before in the halves of a dataset with a window, and nothing else."""
    if not contestant.dataset.dedupe_window_s:
        return
    current, other = dedupe.names(contestant.dataset.name)
    connection.execute(sql.SQL("TRUNCATE {}, {}").format(current, other))
    connection.execute(
        "UPDATE bulk.dedupe SET filter = NULL, change_time = now() WHERE dataset = %s", (contestant.dataset.name,)
    )
    if contestant.remembered == "others":
        insert = sql.SQL(
            "INSERT INTO {} SELECT gen_random_uuid() AS hash, now() FROM generate_series(1, %s) ORDER BY 1"
        )
        connection.execute(insert.format(other), (load.rows,))
        make_filters(connection)
    elif contestant.remembered == "same":
        new = next(item for item in contestants if item.dataset.dedupe_window_s)
        remembered, _ = dedupe.names(new.dataset.name)
        connection.execute(sql.SQL("INSERT INTO {} SELECT * FROM {} ORDER BY hash").format(current, remembered))
    connection.execute("CHECKPOINT")
