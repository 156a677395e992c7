"""Three Kafka nodes, one after the other killed and started again under load: nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos import trial
from tests.chaos.cluster import Cluster, cluster
from tests.chaos.conftest import Record
from tests.chaos.fault import Fault
from tests.chaos.rig import Rig

NAME = "kafka: rolling kill of three nodes"


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path) as running:
        yield running


@pytest.mark.timeout(300)
async def test_a_rolling_kill_of_three_nodes_loses_nothing(torn: Rig, nodes: Cluster, record: Record) -> None:
    await asyncio.to_thread(torn.move_to, nodes.bootstrap)

    @contextmanager
    def rolling(_rig: Rig, _chance: random.Random) -> Iterator[None]:
        for node in nodes.nodes:
            node.kill()
            node.start()
            nodes.await_in_sync()
        yield

    verdict = await trial.run(torn, "rolling", Fault(NAME, "kafka", rolling), 1)
    record(NAME, 1, verdict)
    assert not verdict.violations, "\n".join(map(str, verdict.violations[:20]))
    assert verdict.summary.acknowledged >= 100_000
