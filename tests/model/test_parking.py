"""Parked batches, proved in a model: whatever interleaves, the result is that of one cursor that defers nothing.

BULKGRPC_MODEL_HISTORIES: how many random histories to try instead of the default; 20,000 take some minutes.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from bulkgrpc.consume.plan import Fate
from bulkgrpc.model import JobState
from tests.model.database import Violation
from tests.model.history import random_history
from tests.model.machine import ParkingMachine
from tests.model.mutant import Mutant
from tests.model.shell import RECORDS
from tests.model.world import World, express_of

HISTORIES = int(os.environ.get("BULKGRPC_MODEL_HISTORIES", "1000"))
EVENTS = 60
MUTANT_HISTORIES_MAX = 5_000
"""In which each mutant must be found. The seeds are the same at each run."""
COVERED = (Mutant.MERGE_WITHOUT_OFFSET_LOCK, Mutant.NO_QUEUE_LOCK, Mutant.NO_ROW_LOCK)
"""Another protection covers each. The last two are found together."""
STAGED = (
    Mutant.PROBER_NEEDS_PARKED,
    Mutant.AHEAD_OPENS_LATE,
    Mutant.AHEAD_VIEW_FIRST,
    Mutant.AHEAD_FROM_FETCHED,
    Mutant.AHEAD_PAST_DEFERRED,
    Mutant.HOT_AGAIN,
    Mutant.OPENED_STAYS_SEALED,
    Mutant.TASK_FROM_CLAIMED,
)
"""So few random histories meet in what each gets wrong that a history of its own shows it."""
RANDOM = tuple(mutant for mutant in Mutant if mutant not in (*COVERED, *STAGED))


def explore(histories: int, *mutants: Mutant) -> None:
    """Run the histories of the first seeds. Raises Violation at the first that breaks a promise."""
    for seed in range(histories):
        random_history(seed, EVENTS, frozenset(mutants))


def test_any_interleaving_ends_as_with_one_cursor() -> None:
    """Hypothesis draws and, if one fails, shrinks it to the few events that matter."""
    run_state_machine_as_test(
        ParkingMachine,
        settings=settings(
            max_examples=HISTORIES // 10,
            stateful_step_count=EVENTS,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def test_seeded_histories_end_as_with_one_cursor() -> None:
    explore(HISTORIES)


@pytest.mark.parametrize("mutant", RANDOM, ids=lambda mutant: mutant.name)
def test_a_shell_built_wrong_is_found(mutant: Mutant) -> None:
    with pytest.raises(Violation):
        explore(MUTANT_HISTORIES_MAX, mutant)


def test_two_drainers_without_any_lock_are_found() -> None:
    with pytest.raises(Violation):
        explore(MUTANT_HISTORIES_MAX, Mutant.NO_QUEUE_LOCK, Mutant.NO_ROW_LOCK)


@pytest.mark.parametrize("mutant", COVERED, ids=lambda mutant: mutant.name)
def test_a_protection_that_another_covers_is_not_needed_alone(mutant: Mutant) -> None:
    explore(HISTORIES // 2, mutant)


def block_without_parked(*mutants: Mutant) -> World:
    """A drain fails, another one drains the queue of the table that was repaired, then the first records the block."""
    world = World(frozenset(mutants))
    world.shell.block("x", failed=True)
    return world


def test_a_block_without_parked_messages_is_lifted() -> None:
    block_without_parked().settle()


def test_a_prober_that_needs_a_parked_message_is_found() -> None:
    with pytest.raises(Violation):
        block_without_parked(Mutant.PROBER_NEEDS_PARKED).settle()


def test_the_main_path_applies_directly_after_a_merge_although_messages_keep_arriving() -> None:
    """The merge holds the offset, so the next chunk finds the queue empty."""
    world = World()
    job = world.jobs[0]
    world.acquire("w0", 0)
    world.shell.pause(job.spec.dataset)
    world.send_next(job, b"")
    world.start_chunk("w0", [0], 1)
    world.step("w0", 99)
    world.shell.resume(job.spec.dataset)
    world.start_drain("d0", world.queues()[0], 99, merge=True)
    world.step("d0", 3)
    world.send_next(job, b"")
    world.start_chunk("w0", [0], 1)
    world.step("w0", 99)
    assert "w0" in world.actors, "the chunk waits for the merge"
    for actor in ("d0", "w0"):
        world.step(actor, 99)
    assert not world.database.parked
    assert [decision.fate for decision in world.database.decisions.values()] == [Fate.APPLY, Fate.APPLY]


def open_while_another_opens(steps: int, *mutants: Mutant) -> None:
    """The express path waits for the main path, which creates the job; then both are at its next batch."""
    world = World(frozenset(mutants))
    job = world.jobs[0]
    world.acquire("w0", 0)
    for _ in range(2):
        world.send_next(job, b"")
    world.start_run("w0", "")
    world.start_chunk("w0", [0], 1)
    world.step("w0", 6)
    world.start_ahead("w0", 0, 2)
    world.step(express_of("w0"), 99)
    world.step("w0", 99)
    world.step(express_of("w0"), steps)
    world.start_chunk("w0", [0], 1)
    for actor in ("w0", express_of("w0"), "w0"):
        world.step(actor, 99)
    world.settle()
    world.check()


def test_a_job_that_another_created_is_locked_before_it_is_applied_ahead() -> None:
    for steps in range(15):
        open_while_another_opens(steps)


def test_an_express_path_that_does_not_lock_such_a_job_is_found() -> None:
    def run_each() -> None:
        for steps in range(15):
            open_while_another_opens(steps, Mutant.AHEAD_OPENS_LATE)

    with pytest.raises(Violation):
        run_each()


def park_while_another_looks(steps: int, *mutants: Mutant) -> None:
    """The main path parks the first message of a job after the express path began, which goes on with the next one."""
    world = World(frozenset(mutants))
    new, known = world.jobs[:2]
    world.acquire("w0", 0)
    world.send_next(known, b"")
    world.start_chunk("w0", [0], 1)
    world.step("w0", 99)
    world.send_next(new, b"")
    world.send_next(known, b"")
    world.start_run("w0", "")
    world.start_ahead("w0", 0, 2)
    world.step(express_of("w0"), steps)
    world.shell.pause(new.spec.dataset)
    world.start_chunk("w0", [0], 1)
    world.step("w0", 99)
    world.step(express_of("w0"), 99)
    world.settle()
    world.check()


def test_the_order_of_a_queue_holds_when_its_first_message_is_parked_meanwhile() -> None:
    for steps in range(15):
        park_while_another_looks(steps)


def test_an_express_path_that_looks_too_early_is_found() -> None:
    def run_each() -> None:
        for steps in range(15):
            park_while_another_looks(steps, Mutant.AHEAD_VIEW_FIRST)

    with pytest.raises(Violation):
        run_each()


def begin_a_run_within_a_chunk(steps: int, *mutants: Mutant) -> None:
    """A run of the express path begins while a chunk of the main path is under way."""
    world = World(frozenset(mutants))
    world.acquire("w0", 0)
    world.send_next(world.jobs[0], b"")
    world.start_chunk("w0", [0], 1)
    world.step("w0", steps)
    world.send_next(world.jobs[1], b"")
    world.start_run("w0", "")
    world.start_ahead("w0", 0, 2)
    for actor in (express_of("w0"), "w0", express_of("w0")):
        world.step(actor, 99)
    world.settle()
    world.check()


def test_the_order_of_a_queue_holds_when_a_run_begins_within_a_chunk() -> None:
    for steps in range(15):
        begin_a_run_within_a_chunk(steps)


def test_a_run_that_begins_after_the_chunk_is_found() -> None:
    def run_each() -> None:
        for steps in range(15):
            begin_a_run_within_a_chunk(steps, Mutant.AHEAD_FROM_FETCHED)

    with pytest.raises(Violation):
        run_each()


def go_on_after_a_deferral(*mutants: Mutant) -> World:
    """A message is deferred while its dataset is paused, and a later job of its queue comes once it is resumed."""
    world = World(frozenset(mutants))
    world.acquire("w0", 0)
    world.start_run("w0", "")
    world.shell.pause("x")
    world.send_next(world.jobs[0], b"")
    world.start_ahead("w0", 0, 1)
    world.step(express_of("w0"), 99)
    world.shell.resume("x")
    world.send_next(world.jobs[1], b"")
    world.start_ahead("w0", 0, 1)
    world.step(express_of("w0"), 99)
    world.settle()
    return world


def go_on_with_a_hot_tenant(*mutants: Mutant) -> World:
    """A tenant is passed over, and not hot any more when its next job comes."""
    world = World(frozenset(mutants))
    world.acquire("w0", 0)
    world.start_run("w0", "a")
    world.send_next(world.jobs[0], b"")
    world.start_ahead("w0", 0, 1)
    world.step(express_of("w0"), 99)
    world.leave("w0", "a", hot=False)
    world.send_next(world.jobs[1], b"")
    world.start_ahead("w0", 0, 1)
    world.step(express_of("w0"), 99)
    world.settle()
    return world


def test_the_order_of_a_queue_holds_when_a_run_passes_over_a_message_of_it() -> None:
    go_on_after_a_deferral().check()
    go_on_with_a_hot_tenant().check()


def test_an_express_path_that_goes_on_with_such_a_queue_is_found() -> None:
    with pytest.raises(Violation):
        go_on_after_a_deferral(Mutant.AHEAD_PAST_DEFERRED).check()
    with pytest.raises(Violation):
        go_on_with_a_hot_tenant(Mutant.HOT_AGAIN).check()


def lose_one_lane(*mutants: Mutant) -> World:
    """One lane of a job is sealed before the other shows a loss; its client opens the job again and sends more."""
    world = World(frozenset(mutants))
    job = world.jobs[4]
    for partition in (0, 1):
        world.acquire("w0", partition)
    for _ in range(4):
        world.send_next(job, b"")
    world.seal(job)
    world.lose(job, 4)
    for partition in (1, 0):
        world.start_chunk("w0", [partition], 9)
        world.step("w0", 99)
    assert world.database.jobs[job.job_id].lost
    assert world.database.lanes[job.job_id, 1].sealed
    world.submit_again(job)
    assert (job.next_sequence, job.sealed) == (2, False)
    while job.next_sequence < 6:
        world.send_next(job, b"")
    world.seal(job)
    world.settle()
    return world


def end_while_a_task_applies(steps: int, *mutants: Mutant) -> World:
    """An atomic job is cancelled while a task applies its rows, at any point."""
    world = World(frozenset(mutants))
    job = next(job for job in world.jobs if job.spec.options.atomic)
    world.acquire("w0", 0)
    world.send_next(job, b"")
    world.seal(job)
    world.start_chunk("w0", [0], 2)
    world.step("w0", 99)
    assert world.database.tasks == {job.job_id}
    world.start_task("d0", 0)
    world.step("d0", steps)
    world.cancel(job)
    world.step("d0", 99)
    world.settle()
    return world


def test_a_job_that_is_opened_again_after_a_loss_takes_what_follows_on_every_lane() -> None:
    world = lose_one_lane()
    world.check()
    row = world.database.jobs[world.jobs[4].job_id]
    assert (row.state, row.counts.written, row.counts.expired) == (JobState.SUCCEEDED, 6 * RECORDS, 0)


def test_lanes_that_stay_sealed_when_a_job_is_opened_again_are_found() -> None:
    with pytest.raises(Violation):
        lose_one_lane(Mutant.OPENED_STAYS_SEALED).check()


def test_the_express_path_leaves_a_job_with_a_loss_to_the_main_path() -> None:
    world = World()
    job = world.jobs[0]
    world.acquire("w0", 0)
    for _ in range(3):
        world.send_next(job, b"")
    world.seal(job)
    world.lose(job, 3)
    world.start_run("w0", "")
    world.start_ahead("w0", 0, 9)
    world.step(express_of("w0"), 99)
    assert world.runs["w0"].left == {"", job.spec.key.tenant}
    assert not world.database.jobs[job.job_id].state.ended
    world.start_chunk("w0", [0], 9)
    world.step("w0", 99)
    assert world.database.jobs[job.job_id].lost
    world.settle()
    world.check()


def test_a_job_that_is_cancelled_while_its_rows_are_applied_ends_once() -> None:
    for steps in range(6):
        end_while_a_task_applies(steps).check()


def test_a_task_that_does_not_look_at_its_job_again_is_found() -> None:
    def run_each() -> None:
        for steps in range(6):
            end_while_a_task_applies(steps, Mutant.TASK_FROM_CLAIMED).check()

    with pytest.raises(Violation):
        run_each()
