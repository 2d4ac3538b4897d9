"""What each of several players is worth: the only fair division of what they reach together (Shapley 1953)."""

from collections.abc import Mapping
from itertools import combinations
from math import factorial


def shapley(worth: Mapping[tuple[int, ...], float], players: tuple[int, ...], player: int) -> float:
    """The player's mean marginal worth over all orders; `worth` needs all subsets."""
    others = [p for p in players if p != player]
    n, total = len(players), 0.0
    for size in range(n):
        share = factorial(size) * factorial(n - size - 1) / factorial(n)
        for subset in combinations(others, size):
            total += share * (worth[tuple(sorted((*subset, player)))] - worth[subset])
    return total
