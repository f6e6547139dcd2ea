"""Rules that look at one coordinate of all updates at a time; their plan needs no distances."""

from __future__ import annotations

from folkmoot.aggregation.case import Case
from folkmoot.aggregation.errors import WeightsInvalid
from folkmoot.aggregation.networks import median_ranks, trimmed_ranks
from folkmoot.aggregation.plans import (
    Combination,
    Decision,
    NearestSum,
    RankSum,
    WeightedMedian,
    WeightedTrimmedSum,
    selection,
)


def mean(case: Case) -> Decision:
    """sum_i x_i / n. A single liar moves it anywhere (Blanchard et al. 2017, lemma 1).

    Of 1, 2 and 9 it is 4.
    """
    return Decision(selection(range(case.count), case.count))


def weighted_mean(case: Case) -> Decision:
    """sum_i w_i x_i / sum_i w_i with w_i = min(claimed examples, cap) (FedAvg, McMahan et al. 2017).

    Claims cannot be checked, so `cap` bounds what a false one buys. Not robust. Of 1, 2 and 9 with claims of
    1, 1 and 1000 and a cap of 2 it is (1 + 2 + 18) / 4 = 5.25; without the cap it would be 8.98.
    """
    weights = case.capped_claims()
    return Decision(Combination(weights, sum(weights)))


def median(case: Case) -> Decision:
    """Coordinate-wise median; of an even number the mean of the middle two (Yin et al. 2018).

    Of 1, 2 and 9 it is 2; of 1, 2, 4 and 9 it is 3.
    """
    ranks = median_ranks(case.count)
    return Decision(RankSum(ranks, len(ranks)))


def weighted_median(case: Case) -> Decision:
    """Coordinate-wise value at half of the total capped weight W: the smallest x with 2 w(<= x) >= W.

    Where 2 w(<= x) is exactly W, the mean of x and the next value, so that equal weights give the median.
    Liars whose capped claims are under W / 2 cannot push it outside the honest values (Chen et al. 2017 for
    the unweighted case). Of 1, 2 and 9 with weights 5, 1 and 1 it is 1.
    """
    return Decision(WeightedMedian(case.capped_claims()))


def trimmed_mean(case: Case) -> Decision:
    """Coordinate-wise mean without the f smallest and the f largest values (Yin et al. 2018).

    Of 1, 2, 4 and 90 with f = 1 it is 3.
    """
    ranks = trimmed_ranks(case.count, case.f)
    return Decision(RankSum(ranks, len(ranks)))


def weighted_trimmed_mean(case: Case) -> Decision:
    """Coordinate-wise weighted mean without the mass T of the smallest and of the largest values.

    T is the sum of the f largest capped weights, so f liars never hold more than is cut at either end; with
    equal weights it is the trimmed mean. A value on the border counts with the part of its weight inside.
    Raises WeightsInvalid unless 2 T is less than the whole weight. Of 1, 2, 4 and 90 with weights 2, 1, 1, 1
    and f = 1, T is 2 and the mass in the middle is that of 2: the result is 2.
    """
    weights = case.capped_claims()
    trimmed = sum(sorted(weights, reverse=True)[: case.f])
    if 2 * trimmed >= sum(weights):
        raise WeightsInvalid(
            f"the {case.f} largest claims weigh {trimmed} of {sum(weights)}: trimming them at both ends "
            "leaves nothing; lower the cap or f"
        )
    return Decision(WeightedTrimmedSum(weights, trimmed))


def meamed(case: Case) -> Decision:
    """Coordinate-wise mean of the n - f values nearest to the median (Xie, Koyejo, Gupta 2018).

    Of two equally near values the smaller stays; ByzFL keeps either. Of 1, 2, 3 and 90 with f = 1 it is 2.
    """
    return Decision(NearestSum(case.count - case.f, median_ranks(case.count)))


def phocas(case: Case) -> Decision:
    """Coordinate-wise mean of the n - f values nearest to the f-trimmed mean (Xie, Koyejo, Gupta 2018).

    Of two equally near values the smaller stays. Of 1, 2, 4 and 90 with f = 1 the trimmed mean is 3 and the
    result 7/3.
    """
    return Decision(NearestSum(case.count - case.f, trimmed_ranks(case.count, case.f)))
