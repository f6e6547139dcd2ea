"""Rules that look at one coordinate of all updates at a time; their plan needs no distances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from folkmoot.aggregation.errors import WeightsInvalid
from folkmoot.aggregation.networks import median_ranks, trimmed_ranks
from folkmoot.aggregation.plans import Combination, Plan, RankSum, selection


def mean(count: int, f: int, parameters: Mapping[str, int], claimed: Sequence[int] | None) -> Plan:
    """sum_i x_i / n. Breaks with a single liar (Blanchard et al. 2017, lemma 1)."""
    return selection(list(range(count)), count)


def weighted_mean(count: int, f: int, parameters: Mapping[str, int], claimed: Sequence[int] | None) -> Plan:
    """sum_i w_i x_i / sum_i w_i with w_i = min(claimed examples, cap) (FedAvg, McMahan et al. 2017).

    Claims cannot be checked, so `cap` bounds what a false one buys. Not robust.
    """
    if claimed is None or len(claimed) != count:
        found = "none" if claimed is None else str(len(claimed))
        raise WeightsInvalid(f"weighted-mean needs the claimed examples of {count} updates, found {found}")
    if negative := [weight for weight in claimed if weight < 0]:
        raise WeightsInvalid(f"a claimed number of examples is {negative[0]}, expected 0 or more")
    weights = tuple(min(weight, parameters["cap"]) for weight in claimed)
    if not any(weights):
        raise WeightsInvalid("every update claims 0 examples, so their weighted mean does not exist")
    return Combination(weights, sum(weights))


def median(count: int, f: int, parameters: Mapping[str, int], claimed: Sequence[int] | None) -> Plan:
    """Coordinate-wise median; of an even number the mean of the middle two (Yin et al. 2018)."""
    ranks = median_ranks(count)
    return RankSum(ranks, len(ranks))


def trimmed_mean(count: int, f: int, parameters: Mapping[str, int], claimed: Sequence[int] | None) -> Plan:
    """Coordinate-wise mean without the f smallest and the f largest values (Yin et al. 2018)."""
    ranks = trimmed_ranks(count, f)
    return RankSum(ranks, len(ranks))
