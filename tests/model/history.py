"""The events of a history: clients, workers, drains, failures and operators, each with the choices that it draws from.

One table for two drivers: the Hypothesis state machine explores and shrinks; `random_history` replays a seed, fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Any

from tests.model.mutant import Mutant
from tests.model.world import PARTITIONS, Submission, World, express_of, submissions

WORKERS = ("w0", "w1")
DRAINERS = ("d0", "d1")
ACTORS = WORKERS + DRAINERS + tuple(map(express_of, WORKERS))
KILLABLE = WORKERS + DRAINERS
JOBS = range(len(submissions()))
ONE_LANE = [number for number in JOBS if len(submissions()[number].partitions) == 1]
DATASETS = ("x", "y")
COUNTS = (1, 2, 3, 4)
STEPS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 99)
BOTH = (False, True)


@dataclass(frozen=True)
class Event:
    """Something that may happen. weight: how often `random_history` draws it.

    ahead: on the express path. loss: about messages that the log loses.
    """

    happen: Callable[..., None]
    choices: Mapping[str, Sequence[Any]]
    weight: int
    ahead: bool = False
    loss: bool = False


class History:
    """A world, and the few jobs that take part, so that their messages meet. Dataset z and tenant d stay innocent."""

    def __init__(self, mutants: frozenset[Mutant], active: Sequence[int]) -> None:
        self.world = World(mutants)
        self.shell = self.world.shell
        self.active = [self.world.jobs[number] for number in active]
        self.acquire_all()

    def acquire_all(self) -> None:
        for partition in PARTITIONS:
            self.world.acquire(WORKERS[0], partition)

    def job(self, number: int) -> Submission:
        return self.active[number % len(self.active)]

    def end(self) -> None:
        """Whatever happened: everything is applied in the end as one cursor would have applied it."""
        self.world.settle()
        self.world.check()

    # Clients

    def send(self, number: int, batches: int, rejects: bool) -> None:
        job = self.job(number)
        for _ in range(0 if job.sealed or job.forgotten else batches):
            self.world.send_next(job, b"r" if rejects else b"")

    def send_after_gap(self, number: int) -> None:
        job = self.job(number)
        if not (job.sealed or job.forgotten):
            self.world.send_after_gap(job, b"")
            self.world.send_next(job, b"")

    def send_copy(self, number: int, back: int, conflict: bool) -> None:
        job = self.job(number)
        if not job.forgotten and (job.sealed or job.next_sequence):
            sequence = max(0, job.next_sequence - back + job.sealed)
            self.world.send_copy(job, sequence, conflict=conflict)

    def seal(self, number: int) -> None:
        if not self.job(number).forgotten:
            self.world.seal(self.job(number))

    def lose(self, number: int, back: int) -> None:
        self.world.lose(self.job(number), back)

    def submit_again(self, number: int) -> None:
        if not self.job(number).forgotten:
            self.world.submit_again(self.job(number))

    # Workers

    def acquire(self, worker: str, partition: int) -> None:
        self.world.acquire(worker, partition)

    def prepare(self, worker: str) -> None:
        self.world.prepare(worker)

    def start_chunk(self, worker: str, partitions: Sequence[int], messages_max: int, steps: int) -> None:
        self.world.start_chunk(worker, partitions, messages_max)
        self.world.step(worker, steps)

    def start_drain(self, drainer: str, number: int, slice_max: int, merge: bool, steps: int) -> None:
        if queues := self.world.queues():
            self.world.start_drain(drainer, queues[number % len(queues)], 99 if merge else slice_max, merge=merge)
            self.world.step(drainer, steps)

    def start_task(self, drainer: str, number: int, steps: int) -> None:
        self.world.start_task(drainer, number)
        self.world.step(drainer, steps)

    def race(self, worker: str, messages_max: int, chunk_steps: int, drain_steps: int) -> None:
        """A chunk stops half-way, drains take whole queues, the chunk ends, the drains end."""
        self.world.start_chunk(worker, PARTITIONS, messages_max)
        self.world.step(worker, chunk_steps)
        for drainer, queue in zip(DRAINERS, self.world.queues(), strict=False):
            self.world.start_drain(drainer, queue, 99)
            self.world.step(drainer, drain_steps)
        for actor in (worker, *DRAINERS):
            self.world.step(actor, 99)

    def probe(self, drainer: str, dataset: str, slice_max: int, steps: int) -> None:
        self.world.probe(drainer, dataset, slice_max)
        self.world.step(drainer, steps)

    def step(self, actor: str, steps: int) -> None:
        self.world.step(actor, steps)

    def crash(self, actor: str) -> None:
        self.world.crash(actor)
        if not any(self.world.owned.values()):
            self.acquire_all()

    # Failures and operators

    def table(self, dataset: str, broken: bool) -> None:
        (self.shell.broken.add if broken else self.shell.broken.discard)(dataset)

    def poison(self, number: int, poison: bool) -> None:
        (self.shell.poison.add if poison else self.shell.poison.discard)(self.job(number).job_id)

    def version(self, number: int, missing: bool) -> None:
        (self.shell.missing.add if missing else self.shell.missing.discard)(self.job(number).job_id)

    def discard_job(self, number: int) -> None:
        self.world.discard_job(self.job(number))

    def pause(self, dataset: str) -> None:
        self.shell.pause(dataset)

    def resume(self, dataset: str) -> None:
        self.shell.resume(dataset)

    def discard(self, dataset: str) -> None:
        self.world.discard(dataset)

    def block_job(self, number: int, block: bool) -> None:
        job_id = self.job(number).job_id
        if block:
            self.shell.block_job(job_id)
        else:
            self.shell.database.blocked_jobs.discard(job_id)

    def start_run(self, worker: str, number: int, hot: bool) -> None:
        # The hot tenant may be one that takes no part.
        self.world.start_run(worker, self.job(number).spec.key.tenant if hot else "")

    def start_ahead(self, worker: str, partition: int, messages_max: int, steps: int) -> None:
        self.world.start_ahead(worker, partition, messages_max)
        self.world.step(express_of(worker), steps)

    def leave(self, worker: str, number: int, hot: bool) -> None:
        self.world.leave(worker, self.job(number).spec.key.tenant, hot=hot)

    def cancel(self, number: int) -> None:
        self.world.cancel(self.job(number))

    def forget(self, number: int) -> None:
        self.world.forget(self.job(number))

    def end_abandoned(self, number: int) -> None:
        self.world.end_abandoned(self.job(number))

    def end_unapplied(self, number: int) -> None:
        self.world.end_unapplied(self.job(number))

    def tick(self) -> None:
        self.shell.now += timedelta(seconds=1)


EVENTS = {
    "send": Event(History.send, {"number": JOBS, "batches": COUNTS, "rejects": (False, False, False, True)}, 4),
    "send_after_gap": Event(History.send_after_gap, {"number": JOBS}, 1),
    "send_copy": Event(History.send_copy, {"number": JOBS, "back": COUNTS, "conflict": (False, False, True)}, 1),
    "seal": Event(History.seal, {"number": JOBS}, 1),
    "lose": Event(History.lose, {"number": JOBS, "back": COUNTS}, 2, loss=True),
    "submit_again": Event(History.submit_again, {"number": JOBS}, 2, loss=True),
    "acquire": Event(History.acquire, {"worker": WORKERS, "partition": PARTITIONS}, 1),
    "prepare": Event(History.prepare, {"worker": WORKERS}, 1),
    "start_chunk": Event(
        History.start_chunk,
        {"worker": WORKERS, "partitions": ((0,), (1,), (0, 1)), "messages_max": COUNTS, "steps": STEPS},
        6,
    ),
    "start_drain": Event(
        History.start_drain,
        {"drainer": DRAINERS, "number": COUNTS, "slice_max": COUNTS, "merge": BOTH, "steps": STEPS},
        5,
    ),
    "start_task": Event(History.start_task, {"drainer": DRAINERS, "number": COUNTS, "steps": STEPS}, 2),
    "race": Event(
        History.race, {"worker": WORKERS, "messages_max": COUNTS, "chunk_steps": STEPS, "drain_steps": STEPS}, 3
    ),
    "probe": Event(History.probe, {"drainer": DRAINERS, "dataset": DATASETS, "slice_max": COUNTS, "steps": STEPS}, 1),
    "step": Event(History.step, {"actor": ACTORS, "steps": STEPS}, 8),
    "crash": Event(History.crash, {"actor": KILLABLE}, 1),
    "table": Event(History.table, {"dataset": DATASETS, "broken": BOTH}, 2),
    "poison": Event(History.poison, {"number": JOBS, "poison": BOTH}, 1),
    "version": Event(History.version, {"number": JOBS, "missing": (True, True, False)}, 1),
    "discard_job": Event(History.discard_job, {"number": JOBS}, 1),
    "pause": Event(History.pause, {"dataset": DATASETS}, 1),
    "resume": Event(History.resume, {"dataset": DATASETS}, 1),
    "discard": Event(History.discard, {"dataset": DATASETS}, 1),
    "block_job": Event(History.block_job, {"number": JOBS, "block": BOTH}, 1),
    "start_run": Event(History.start_run, {"worker": WORKERS, "number": JOBS, "hot": BOTH}, 2, ahead=True),
    "start_ahead": Event(
        History.start_ahead,
        {"worker": WORKERS, "partition": PARTITIONS, "messages_max": COUNTS, "steps": STEPS},
        5,
        ahead=True,
    ),
    "leave": Event(History.leave, {"worker": WORKERS, "number": JOBS, "hot": BOTH}, 2, ahead=True),
    "cancel": Event(History.cancel, {"number": JOBS}, 1),
    "forget": Event(History.forget, {"number": JOBS}, 1),
    "end_abandoned": Event(History.end_abandoned, {"number": JOBS}, 1),
    "end_unapplied": Event(History.end_unapplied, {"number": JOBS}, 2, loss=True),
    "tick": Event(History.tick, {}, 1),
}


def random_history(seed: int, events: int, mutants: frozenset[Mutant]) -> None:
    """Run the history of a seed to its end. Raises Violation if a promise is broken."""
    random = Random(seed)
    # In some histories the express path does much. It leaves jobs with several lanes to the main path.
    ahead = random.random() < 0.4
    history = History(mutants, random.sample(ONE_LANE if ahead else JOBS, random.randint(1, 3)))
    # Most histories leave out most kinds of failure: the others then meet more often.
    loses = random.random() < 0.3
    kinds = [event for event in EVENTS.values() if event.weight > 1 or random.random() < 0.4]
    kinds = [event for event in kinds if loses or not event.loss]
    weights = [event.weight * (3 if ahead and event.ahead else 1) for event in kinds]
    drawn = random.choices(kinds, weights, k=events)
    for event in drawn:
        event.happen(history, **{name: random.choice(choices) for name, choices in event.choices.items()})
    history.end()
