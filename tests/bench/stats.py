"""What the benchmark says of its numbers: pure, and without assumptions about how times are distributed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

CONFIDENCE = 0.95


class Summary(msgspec.Struct, frozen=True):
    """Times of one thing, all rounds together."""

    median: float
    p99: float
    count: int


class Ratio(msgspec.Struct, frozen=True):
    """How many times the baseline another thing takes: the median over pairs measured next to each other.

    Attributes:
        median: of the pairs' ratios.
        low: where its 95 % confidence interval begins.
        high: where it ends.
        least: the smallest ratio of a pair.
        most: the largest.
        pairs: how many.
    """

    median: float
    low: float
    high: float
    least: float
    most: float
    pairs: int


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed (no interpolation).

    Raises:
        ValueError: there are no values, or `share` is not within (0, 1].
    """
    if not values or not 0 < share <= 1:
        raise ValueError("a quantile needs values and a share within (0, 1]")
    return sorted(values)[math.ceil(share * len(values)) - 1]


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the middle two.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("a median needs values")
    ordered = sorted(values)
    half = len(ordered) // 2
    return float(ordered[half]) if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def summarize(values: Sequence[float]) -> Summary:
    """Median, p99 and number of values."""
    return Summary(median(values), float(quantile(values, 0.99)), len(values))


def compare(baseline: Sequence[float], other: Sequence[float]) -> Ratio:
    """The ratio other/baseline, pair by pair.

    Args:
        baseline: one positive value per pair.
        other: its partner, measured right before or after.

    Raises:
        ValueError: the values do not pair, or there are none.
    """
    ratios = sorted(b / a for a, b in zip(baseline, other, strict=True))
    low, high = median_ranks(len(ratios))
    return Ratio(median(ratios), ratios[low], ratios[high], ratios[0], ratios[-1], len(ratios))


def median_ranks(count: int, confidence: float = CONFIDENCE) -> tuple[int, int]:
    """Ranks (from 0) of the sorted values between which the true median lies with at least `confidence`.

    Each value is below the true median with probability one half, whatever the distribution, so how many
    are is binomial. With too few values for the confidence: the first and the last.

    Raises:
        ValueError: there are no values.
    """
    if count < 1:
        raise ValueError("no values")
    outside = (1 - confidence) / 2
    low, below = 0, 0.0
    for rank in range(count // 2):
        below += math.comb(count, rank) / (1 << count)
        if below > outside:
            break
        low = rank
    return low, count - 1 - low


def rotated(items: Sequence[str], round_number: int) -> list[str]:
    """The items in the order for this round: each comes first, and after each neighbour, equally often.

    Rounds go forwards and backwards by turns, so a drift of the machine favours nobody.
    """
    turn = (round_number // 2) % len(items)
    order = [*items[turn:], *items[:turn]]
    return order if round_number % 2 == 0 else order[::-1]
