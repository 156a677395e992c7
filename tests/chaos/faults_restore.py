"""PostgreSQL comes back older than what was applied: restored from an earlier copy, or a lagging standby promoted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

from tests.chaos.fault import Fault
from tests.chaos.rig import Rig
from tests.support.restore import PostgresImages
from tests.support.waiting import wait_for

APPLIES_WITHIN_S = 20.0


def _applied(rig: Rig) -> int:
    with rig.database() as connection:
        row = connection.execute("SELECT coalesce(sum(next_offset), 0)::bigint FROM bulk.offsets").fetchone()
    return 0 if row is None else int(row[0])


def _has_something_to_lose(rig: Rig, before: int) -> None:
    assert wait_for(lambda: _applied(rig) > before, APPLIES_WITHIN_S), "nothing was applied that could be taken back"


@contextmanager
def _restored(rig: Rig, _: random.Random) -> Iterator[None]:
    images = PostgresImages(rig.stack)
    image = images.copy()
    before = _applied(rig)
    yield
    _has_something_to_lose(rig, before)
    with images.replaced_by(image):
        rig.history.note("rig", "restored")
    assert _applied(rig) >= before


@contextmanager
def _promoted(rig: Rig, _: random.Random) -> Iterator[None]:
    with PostgresImages(rig.stack).standby() as standby:
        standby.fall_behind()
        before = _applied(rig)
        yield
        _has_something_to_lose(rig, before)
        with standby.promoted():
            rig.history.note("rig", "restored")


RESTORE_FAULTS = (
    Fault("postgres: restored to an earlier time", "postgres", _restored, 2.0),
    Fault("postgres: a lagging standby promoted", "postgres", _promoted, 2.0),
)
