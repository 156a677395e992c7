"""The topic is deleted and created again under load: nothing is lost in silence, and an operator continues."""

from __future__ import annotations

from tests.chaos import trial
from tests.chaos.faults_topic import TOPIC_REPLACED, replaced
from tests.chaos.rig import Rig
from tests.chaos.test_mutants import broken

SEED = 1
SOME_BATCHES = 30


async def test_blind_to_topics_p11_is_broken(torn: Rig) -> None:
    torn.disguise("blind_to_topics")
    verdict = await trial.run(torn, "blind", replaced(stops=False), SEED, SOME_BATCHES, 15.0)
    assert "P11" in broken(verdict)
    torn.repair_ledger()
    torn.disguise("none")


async def test_a_topic_that_is_created_again_under_load_loses_nothing_in_silence(torn: Rig) -> None:
    verdict = await trial.run(torn, "replaced", TOPIC_REPLACED, SEED, SOME_BATCHES)
    assert not broken(verdict)
    assert not [code for _, code in torn.ended if code > 0]
