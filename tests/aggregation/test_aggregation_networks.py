"""A pruned network finds the ranks that it was made for."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from folkmoot.aggregation.networks import median_ranks, network_for_sum, trimmed_ranks


@given(st.integers(1, 12), st.data())
def test_a_pruned_network_sums_the_wanted_ranks(lines, data):
    ranks = data.draw(
        st.sampled_from([median_ranks(lines), *(trimmed_ranks(lines, f) for f in range((lines + 1) // 2))])
        | st.sets(st.integers(0, lines - 1), min_size=1).map(lambda chosen: tuple(sorted(chosen)))
    )
    values = data.draw(st.lists(st.integers(-3, 3), min_size=lines, max_size=lines))
    sorted_values = list(values)
    for comparison in network_for_sum(lines, ranks):
        low, high = sorted_values[comparison.low], sorted_values[comparison.high]
        sorted_values[comparison.low], sorted_values[comparison.high] = min(low, high), max(low, high)
    expected = sum(sorted(values)[rank] for rank in ranks)
    assert Fraction(sum(sorted_values[rank] for rank in ranks)) == expected
