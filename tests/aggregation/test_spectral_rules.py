"""Eigenvalues without a start vector, and the rules that rest on them, against liars who aim at them."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import numpy.typing as npt
import pytest

from folkmoot.aggregation import (
    Lattice,
    Layout,
    SearchTooHard,
    TensorSpec,
    aggregate_updates,
    rule_spec,
)
from folkmoot.aggregation.eigen import MAX_SIZE, largest_eigenpairs


def selected(rows: npt.NDArray[np.int16], rule: str, f: int) -> npt.NDArray[np.float64]:
    layout = Layout((TensorSpec("t", (rows.shape[1],)),))
    whole = aggregate_updates(list(rows), layout, Lattice(16, (0,)), rule_spec(rule, f))
    return np.array([float(top) for top in whole.numerators]) / whole.denominator


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("size", "rank"), [(1, 1), (2, 5), (7, 3), (40, 60), (100, 100), (MAX_SIZE, 30)])
def test_eigenvalues_are_those_of_lapack_and_never_above(seed: int, size: int, rank: int) -> None:
    rng = np.random.default_rng([seed, size, rank])
    rows = rng.standard_normal((3, size, rank)) * rng.exponential(size=(3, 1, rank)) ** 2
    matrices = rows @ rows.transpose(0, 2, 1)
    values, vectors = largest_eigenpairs(matrices)
    true = np.linalg.eigvalsh(matrices)[:, -1]
    assert (values <= true * (1 + 1e-12)).all(), seed
    assert (values >= true * 0.998).all(), seed
    assert np.allclose((vectors**2).sum(axis=1), 1)


def test_matrices_of_zeros_and_of_equal_eigenvalues_have_an_eigenvalue() -> None:
    assert largest_eigenpairs(np.zeros((2, 5, 5)))[0].tolist() == [0.0, 0.0]
    assert largest_eigenpairs(np.eye(9)[None] * 4)[0] == pytest.approx([4.0])


def test_eigenvectors_have_the_same_bytes_in_every_run() -> None:
    rows = np.random.default_rng(5).standard_normal((100, 30))
    _, vectors = largest_eigenpairs((rows @ np.diag(np.arange(30)) @ rows.T)[None].round(6))
    again = largest_eigenpairs((rows @ np.diag(np.arange(30)) @ rows.T)[None].round(6))[1]
    assert hashlib.sha256(vectors.tobytes()).digest() == hashlib.sha256(again.tobytes()).digest()


@pytest.mark.parametrize("rule", ["caf", "smea"])
def test_two_opposite_liars_that_are_farthest_out_in_a_direction_of_little_variance_do_not_hide_others(
    rule: str,
) -> None:
    # The update farthest from the mean lies along axis 0; the most variance, of six others, along axis 1.
    honest = np.tile(np.int16([[0, 0, 0]]), (9, 1))
    honest[:, 2] = [-3, -2, -1, 0, 0, 0, 1, 2, 3]
    far = np.int16([[120, 0, 0]])
    pairs = np.int16([[0, 100, 0], [0, 100, 0], [0, -100, 0]])
    result = selected(np.concatenate([far, pairs, honest]), rule, 4)
    assert np.abs(result).max() < 2


@pytest.mark.parametrize("seed", range(10))
def test_smea_takes_the_subset_that_varies_least(seed: int) -> None:
    rng = np.random.default_rng([seed, 12])
    rows = rng.integers(-1000, 1000, (9, 6)).astype(np.int16)
    got = selected(rows, "smea", 3)
    spreads = {}
    for subset in itertools.combinations(range(9), 6):
        centred = rows[list(subset)] - rows[list(subset)].mean(axis=0)
        spreads[subset] = np.linalg.eigvalsh(centred.T @ centred)[-1]
    chosen = min(spreads, key=lambda subset: float(np.abs(rows[list(subset)].mean(axis=0) - got).max()))
    assert np.allclose(rows[list(chosen)].mean(axis=0), got)
    assert spreads[chosen] <= 1.002 * min(spreads.values()), seed


@pytest.mark.parametrize(("n", "f"), [(30, 6), (50, 10)])
def test_smea_finds_liars_among_many_members(n: int, f: int) -> None:
    rng = np.random.default_rng(n)
    rows = rng.normal(0, 100, (n, 40)) + 50
    liars = rng.permutation(n)[:f]
    rows[liars] = rng.normal(0, 100, (f, 40)) - 3000
    rows = np.rint(rows).astype(np.int16)
    honest = np.delete(rows, liars, axis=0)
    assert np.allclose(selected(rows, "smea", f), honest.mean(axis=0))


def test_smea_of_equal_updates_needs_no_search() -> None:
    assert selected(np.full((60, 4), 7, np.int16), "smea", 20).tolist() == [7, 7, 7, 7]


def test_smea_gives_up_when_all_look_alike() -> None:
    rows = np.random.default_rng(0).integers(-1000, 1000, (40, 100)).astype(np.int16)
    with pytest.raises(SearchTooHard, match="use caf"):
        selected(rows, "smea", 12)
