"""The events of `history` as a Hypothesis state machine: each is a rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.model.history import EVENTS, JOBS, Event, History
from tests.model.mutant import Mutant


class _Machine(RuleBasedStateMachine):
    mutants: ClassVar[frozenset[Mutant]] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.history = History(self.mutants, JOBS)

    @initialize(active=st.sets(st.sampled_from(JOBS), min_size=1, max_size=3))
    def choose(self, active: set[int]) -> None:
        self.history = History(self.mutants, sorted(active))

    def teardown(self) -> None:
        self.history.end()


def _rule(name: str, event: Event) -> Callable[..., None]:
    def happen(self: _Machine, **choices: Any) -> None:
        event.happen(self.history, **choices)

    happen.__name__ = name
    decorate: Any = rule(**{n: st.sampled_from(choices) for n, choices in event.choices.items()})  # type: ignore[call-overload]
    found: Callable[..., None] = decorate(happen)
    return found


ParkingMachine = type("ParkingMachine", (_Machine,), {name: _rule(name, event) for name, event in EVENTS.items()})
