"""How long to pause before the next try, and when to stop trying. Pure: time and chance come from outside."""

from __future__ import annotations

from dataclasses import dataclass

from bulkgrpc.client.config import ClientConfig

_DOUBLINGS_MAX = 32


def pause_s(config: ClientConfig, failures: int, at_least_s: float, chance: float) -> float:
    """Return the pause after the given number of failures in a row, 1 or more.

    at_least_s: what the server asked for. chance: 0 to 1, by which clients that failed together spread ("full jitter").
    The answer lies in [at_least_s, at_least_s + min(retry_cap_s, retry_base_s * 2 ** (failures - 1))].
    """
    longest_s = min(config.retry_cap_s, config.retry_base_s * 2.0 ** min(failures - 1, _DOUBLINGS_MAX))
    return at_least_s + chance * longest_s


@dataclass(frozen=True, slots=True)
class Patience:
    """A run of failures without any progress in between.

    failing_since_s: when the first of them was seen; None if there is none. reached: whether a server answered once.
    """

    config: ClientConfig
    failing_since_s: float | None = None
    failures: int = 0
    reached: bool = False

    def progressed(self) -> Patience:
        """Return the patience after progress: everything forgiven."""
        return Patience(self.config, reached=True)

    def failed(self, now_s: float, *, reached: bool) -> Patience:
        """Return the patience after one more failure. reached: whether a server has answered by now."""
        since_s = now_s if self.failing_since_s is None else self.failing_since_s
        return Patience(self.config, since_s, self.failures + 1, self.reached or reached)

    def failing_s(self, now_s: float) -> float:
        """Return for how many seconds nothing but failures came."""
        return 0.0 if self.failing_since_s is None else now_s - self.failing_since_s

    def exhausted(self, now_s: float, deadline_s: float) -> bool:
        """Tell whether to stop trying.

        | a server answered once | then after                              |
        |------------------------|-----------------------------------------|
        | no                     | min(connect_deadline_s, deadline_s)     |
        | yes                    | deadline_s                              |
        """
        limit_s = deadline_s if self.reached else min(self.config.connect_deadline_s, deadline_s)
        return self.failing_s(now_s) >= limit_s
