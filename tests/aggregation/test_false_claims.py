"""What the smallest of ten members gains by claiming a thousand times its size: the figures of the manual."""

from __future__ import annotations

import numpy as np
import pytest

from folkmoot.aggregation import aggregate

HONEST = [np.float32([1.0])] * 9
LIAR = np.float32([2.0])
CLAIMS = [100] * 9 + [100_000]


def moved(rule: str, cap: int, f: int = 0) -> float:
    """How far the liar's 2 moves the others' 1."""
    return float(aggregate([*HONEST, LIAR], rule, f, params={"cap": cap}, weights=CLAIMS)[0]) - 1.0


@pytest.mark.parametrize(("cap", "share"), [(100_000, 0.991), (200, 0.182), (100, 0.1)])
def test_the_share_of_a_weighted_mean_is_what_the_cap_allows(cap: int, share: float) -> None:
    assert moved("weighted-mean", cap) == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize(("rule", "f"), [("weighted-median", 1), ("weighted-trimmed-mean", 1)])
def test_a_capped_claim_moves_a_weighted_rank_nowhere(rule: str, f: int) -> None:
    assert moved(rule, 200, f) == 0.0


def test_without_a_real_cap_the_claim_takes_the_median() -> None:
    assert moved("weighted-median", 100_000, 1) == 1.0
