from __future__ import annotations

import asyncio
import contextlib

from hypothesis import given
from hypothesis import strategies as st

from bulkgrpc.ingest.byte_budget import ByteBudget


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_waits_first_goes_first_even_if_later_ones_would_fit() -> None:
    budget, order = ByteBudget(10), list[int]()

    async def take(size_bytes: int) -> None:
        await budget.acquire(size_bytes)
        order.append(size_bytes)

    await budget.acquire(8)
    tasks = [asyncio.create_task(take(size)) for size in (5, 1)]
    await settle()
    assert order == []
    budget.release(8)
    await asyncio.gather(*tasks)
    assert order == [5, 1]


async def test_more_than_the_whole_budget_waits_for_all_of_it() -> None:
    budget = ByteBudget(10)
    assert await budget.acquire(99) == 10
    assert budget.in_use_bytes == 10


async def test_one_that_gives_up_waiting_lets_the_next_one_through() -> None:
    budget = ByteBudget(10)
    await budget.acquire(6)
    large, small = asyncio.create_task(budget.acquire(8)), asyncio.create_task(budget.acquire(2))
    await settle()
    large.cancel()
    assert await small == 2
    assert budget.in_use_bytes == 8


async def test_bytes_granted_to_one_that_is_cancelled_in_that_moment_are_not_lost() -> None:
    budget = ByteBudget(10)
    await budget.acquire(10)
    waiting = asyncio.create_task(budget.acquire(10))
    await settle()
    budget.release(10)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    assert budget.in_use_bytes == 0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("acquire"), st.integers(0, 15)),
        st.tuples(st.just("release"), st.integers(0, 99)),
        st.tuples(st.just("cancel"), st.integers(0, 99)),
    ),
    max_size=60,
)


@given(STEPS)
def test_never_more_than_the_budget_is_in_use_and_all_of_it_comes_back(steps: list[tuple[str, int]]) -> None:
    async def run() -> None:
        budget, tasks = ByteBudget(10), list[asyncio.Task[int]]()
        for step, number in steps:
            if step == "acquire":
                tasks.append(asyncio.create_task(budget.acquire(number)))
            elif tasks:
                task = tasks.pop(number % len(tasks))
                if step == "release" and task.done():
                    budget.release(task.result())
                elif step == "cancel" and not task.done():
                    task.cancel()
                else:
                    tasks.append(task)
            await settle()
            assert budget.in_use_bytes == sum(task.result() for task in tasks if task.done())
            assert 0 <= budget.in_use_bytes <= 10
        while tasks:
            for task in [task for task in tasks if task.done()]:
                tasks.remove(task)
                budget.release(task.result())
            await settle()
        assert budget.in_use_bytes == 0

    asyncio.run(run())
