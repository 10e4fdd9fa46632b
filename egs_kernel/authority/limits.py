"""How many requests a principal may send: a bucket of tokens each, and no more buckets than fit. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

MOST_PRINCIPALS: Final = 4096


class Buckets:
    """Tokens by principal. A bucket that is forgotten is full again; only full ones are forgotten, but for room.

    Args:
        rate: tokens that come back in a second.
        burst: tokens that a bucket holds.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, principal: str, now: float) -> float:
        """Take a token.

        Args:
            principal: whose.
            now: monotonic seconds.

        Returns:
            Seconds until there is one again; 0: it was taken.
        """
        tokens, since = self._buckets.pop(principal, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) * self._rate)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self._rate
        self._buckets[principal] = (tokens - (wait == 0), now)
        if len(self._buckets) > MOST_PRINCIPALS:
            self._buckets.popitem(last=False)
        return wait


class Counter:
    """Refusals that are told together: one entry a second for each principal, with how many it stands for."""

    def __init__(self) -> None:
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def add(self, principal: str, now: float) -> int:
        """Count one more; how many are to be told now, or 0: later."""
        count, told = self._counts.pop(principal, (0, now - 1))
        count += 1
        due = now - told >= 1
        self._counts[principal] = (0, now) if due else (count, told)
        if len(self._counts) > MOST_PRINCIPALS:
            self._counts.popitem(last=False)
        return count if due else 0
