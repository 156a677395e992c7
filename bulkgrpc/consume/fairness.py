"""Decides which tenants of a partition are hot: they use more than their share while others wait.

Pure: the caller measures, keeps one `PartitionShares` per partition, and defers the tenants in `hot`.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

FORGOTTEN_BELOW = 1e-3
"""A tenant whose part of the recent work is below this is no longer active."""


@dataclass(frozen=True, slots=True)
class FairnessSettings:
    """When a tenant becomes hot, and when it no longer is.

    enter_ratio, exit_ratio: offered share divided by fair share.
    waiting_s_max: another tenant must wait longer than this before a tenant becomes hot.
    waiting_s_calm: a tenant that waits at most this long is served in time.
    calm_chunks: chunks in succession that must be calm before a tenant is no longer hot.
    decay: how much of the past a chunk keeps.
    drain_share_min: of a worker's write time, for the parked messages of hot tenants.
    """

    enter_ratio: float = 1.5
    exit_ratio: float = 1.1
    waiting_s_max: float = 0.1
    waiting_s_calm: float = 0.02
    calm_chunks: int = 8
    decay: float = 0.9
    drain_share_min: float = 0.1

    def __post_init__(self) -> None:
        """Raise ValueError unless the thresholds leave a gap between becoming hot and cooling down."""
        if not 1.0 < self.exit_ratio < self.enter_ratio:
            raise ValueError("1 < exit_ratio < enter_ratio is required")
        if not 0.0 <= self.waiting_s_calm < self.waiting_s_max:
            raise ValueError("0 <= waiting_s_calm < waiting_s_max is required")
        if not (0.0 < self.decay < 1.0 and 0.0 < self.drain_share_min < 1.0 and self.calm_chunks >= 1):
            raise ValueError("0 < decay < 1, 0 < drain_share_min < 1 and calm_chunks >= 1 are required")


@dataclass(frozen=True, slots=True)
class PartitionShares:
    """The recent work of a partition.

    work: records that each tenant sent, deferred ones included, older chunks counting less. calm: for each hot tenant,
    how many chunks in succession were calm.
    """

    work: Mapping[str, float] = field(default_factory=dict)
    calm: Mapping[str, int] = field(default_factory=dict)

    @property
    def hot(self) -> frozenset[str]:
        """The tenants that are to be deferred."""
        return frozenset(self.calm)


@dataclass(frozen=True, slots=True)
class ChunkLoad:
    """What a chunk's messages say of a partition.

    records: of each tenant in the chunk, deferred or not. Not what was applied: a hot tenant applies nothing directly,
    and would cool down at once.
    waiting_s: age of each tenant's oldest message that may be applied and is not, parked or not. Blocked messages do
    not count: no other tenant delays them. A tenant without such a message is left out.
    """

    records: Mapping[str, int]
    waiting_s: Mapping[str, float]


def next_shares(
    shares: PartitionShares, load: ChunkLoad, weights: Mapping[str, float], settings: FairnessSettings
) -> PartitionShares:
    """Return the shares of a partition after a chunk.

    weights: of tenants that differ from 1.0; above 0.

    | tenant | condition                                                                       | then             |
    |--------|---------------------------------------------------------------------------------|------------------|
    | cool   | share > enter_ratio x fair share, a cool tenant waits longer than waiting_s_max | hot              |
    | cool   | otherwise                                                                       | cool             |
    | hot    | share <= exit_ratio x fair share                                                | the chunk is calm |
    | hot    | no tenant, itself included, waits longer than waiting_s_calm                    | the chunk is calm |
    | hot    | calm_chunks calm chunks in succession                                           | cool             |

    The fair share of a tenant is its weight divided by the weights of all active tenants. So a tenant that is alone is
    never hot, and one tenant at least is always cool.
    """
    work = _decayed(shares.work, load.records, settings.decay)
    total = sum(work.values())
    weight_total = sum(weights.get(tenant, 1.0) for tenant in work)
    ratios = {t: (done / total) / (weights.get(t, 1.0) / weight_total) for t, done in work.items()}
    in_time = all(waiting <= settings.waiting_s_calm for waiting in load.waiting_s.values())
    calm: dict[str, int] = {}
    for tenant, ratio in ratios.items():
        if tenant in shares.calm:
            is_calm = in_time or ratio <= settings.exit_ratio
            count = shares.calm[tenant] + 1 if is_calm else 0
            if count < settings.calm_chunks:
                calm[tenant] = count
        elif ratio > settings.enter_ratio and _others_wait(tenant, work.keys() - shares.calm.keys(), load, settings):
            calm[tenant] = 0
    return PartitionShares(work, calm)


def drain_share(shares: PartitionShares, weights: Mapping[str, float], settings: FairnessSettings) -> float:
    """Return the part of a worker's write time for a partition that the parked messages of hot tenants get.

    Their part of the weights, at least `drain_share_min`: a deferred tenant always advances. 1.0 if none is hot: the
    drain then runs whenever it has work.
    """
    if not shares.calm:
        return 1.0
    weight_total = sum(weights.get(tenant, 1.0) for tenant in shares.work)
    return max(settings.drain_share_min, sum(weights.get(tenant, 1.0) for tenant in shares.calm) / weight_total)


def _decayed(work: Mapping[str, float], records: Mapping[str, int], decay: float) -> dict[str, float]:
    tenants = work.keys() | records.keys()
    after = {tenant: work.get(tenant, 0.0) * decay + records.get(tenant, 0) for tenant in sorted(tenants)}
    total = sum(after.values())
    return {tenant: done for tenant, done in after.items() if done > total * FORGOTTEN_BELOW}


def _others_wait(tenant: str, cool: Set[str], load: ChunkLoad, settings: FairnessSettings) -> bool:
    return any(load.waiting_s.get(other, 0.0) > settings.waiting_s_max for other in cool if other != tenant)
