"""How long to wait before the next attempt, and when to give up. Pure: time and randomness are parameters."""

from __future__ import annotations

from dataclasses import dataclass

from bulkgrpc.client.config import ClientConfig

_DOUBLINGS_MAX = 32


def backoff_s(config: ClientConfig, failures: int, retry_after_s: float, random: float) -> float:
    """Return the seconds to wait after `failures` consecutive failures, 1 or more.

    retry_after_s: what the server asked for. random: in [0, 1); spreads clients that failed together ("full jitter").
    The result is in [retry_after_s, retry_after_s + min(retry_cap_s, retry_base_s * 2 ** (failures - 1))].
    """
    max_s = min(config.retry_cap_s, config.retry_base_s * 2.0 ** min(failures - 1, _DOUBLINGS_MAX))
    return retry_after_s + random * max_s


@dataclass(frozen=True, slots=True)
class RetryState:
    """Consecutive failures without progress.

    failing_since_s: time of the first failure; None if there is none. reached: whether a server ever answered.
    """

    config: ClientConfig
    failing_since_s: float | None = None
    failures: int = 0
    reached: bool = False

    def after_progress(self) -> RetryState:
        """Return the state after progress: no failures."""
        return RetryState(self.config, reached=True)

    def after_failure(self, now_s: float, *, reached: bool) -> RetryState:
        """Return the state after one more failure. reached: whether a server has answered by now."""
        since_s = now_s if self.failing_since_s is None else self.failing_since_s
        return RetryState(self.config, since_s, self.failures + 1, self.reached or reached)

    def failing_s(self, now_s: float) -> float:
        """Return the seconds since the first of the consecutive failures."""
        return 0.0 if self.failing_since_s is None else now_s - self.failing_since_s

    def exhausted(self, now_s: float, deadline_s: float) -> bool:
        """Return whether to give up.

        | a server ever answered | give up after                           |
        |------------------------|-----------------------------------------|
        | no                     | min(connect_deadline_s, deadline_s)     |
        | yes                    | deadline_s                              |
        """
        limit_s = deadline_s if self.reached else min(self.config.connect_deadline_s, deadline_s)
        return self.failing_s(now_s) >= limit_s
