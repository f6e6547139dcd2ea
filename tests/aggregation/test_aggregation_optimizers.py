"""Server optimizers: the paper's formulas, the same bytes on every machine, and named refusals."""

from __future__ import annotations

import hashlib
import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from folkmoot.aggregation import (
    Aggregate,
    Gram,
    Lattice,
    Layout,
    LayoutMismatch,
    ModelOverflow,
    TensorSpec,
    apply_aggregate,
)
from folkmoot.aggregation.errors import OptimizerInvalid
from folkmoot.aggregation.optimizer_step import OptimizerState, initial_state, optimizer_step
from folkmoot.aggregation.optimizers import OPTIMIZERS, OptimizerSpec, optimizer_spec

LAYOUT = Layout((TensorSpec("w", (20, 7)), TensorSpec("b", (13,))))
LATTICE = Lattice(16, (-20, -17))
NAMES = list(OPTIMIZERS)
BUSY = {
    "sgd": {"learning_rate": 0.7, "momentum": 0.9},
    "fedadam": {"learning_rate": 0.3, "beta1": 0.8, "beta2": 0.95, "tau": 0.01},
    "fedyogi": {"learning_rate": 0.3, "beta1": 0.8, "beta2": 0.95, "tau": 0.01},
    "fedadagrad": {"learning_rate": 0.3, "beta1": 0.8, "tau": 0.01},
}


def aggregate(numerators: np.ndarray | list[int], denominator: int) -> Aggregate:
    return Aggregate(np.array(numerators, np.int64), denominator, None, Gram((), 0), (), 0)


def some_aggregate(random: np.random.Generator) -> Aggregate:
    return aggregate(random.integers(-32_767 * 7, 32_767 * 7, LAYOUT.size), 7)


def some_model(random: np.random.Generator) -> np.ndarray:
    return random.normal(0, 0.1, LAYOUT.size).astype(np.float32)


def trajectory(spec: OptimizerSpec, steps: int, seed: int = 1, **options: int) -> tuple[bytes, str]:
    random = np.random.default_rng(seed)
    model, state = some_model(random), initial_state(spec, LAYOUT)
    for _ in range(steps):
        model, state = optimizer_step(model, some_aggregate(random), state, spec, LAYOUT, LATTICE, **options)
    return model.tobytes(), state.digest().hex()


def plain_step(
    name: str, x: float, delta: float, m: float, v: float, p: dict[str, float]
) -> tuple[float, float, float]:
    """One coordinate after Reddi et al. 2021, algorithm 2, in Python floats, kept as float32."""
    if name == "sgd":
        m = float(np.float32(p["momentum"] * m + delta))
        return float(np.float32(x + p["learning_rate"] * m)), m, v
    complement = {key: float(1 - Fraction(str(value))) for key, value in p.items()}
    m = float(np.float32(p["beta1"] * m + complement["beta1"] * delta))
    square = delta * delta
    if name == "fedadagrad":
        v = v + square
    elif name == "fedadam":
        v = p["beta2"] * v + complement["beta2"] * square
    else:
        v = v - complement["beta2"] * square * ((v > square) - (v < square))
    v = float(np.float32(v))
    return float(np.float32(x + p["learning_rate"] * m / (math.sqrt(v) + p["tau"]))), m, v


@settings(deadline=None)
@given(
    st.sampled_from([8, 16]),
    st.integers(-110, 100),
    st.integers(1, 2**32),
    st.lists(
        st.tuples(st.floats(-(2.0**100), 2.0**100, width=32), st.fractions(-1, 1)), min_size=1, max_size=20
    ),
)
def test_plain_sgd_of_learning_rate_one_is_apply_aggregate_bit_for_bit(bits, exponent, denominator, pairs):
    model = np.array([weight for weight, _ in pairs], np.float32)
    delta = aggregate([int(share * (2 ** (bits - 1) - 1) * denominator) for _, share in pairs], denominator)
    layout, lattice = Layout((TensorSpec("w", (len(pairs),)),)), Lattice(bits, (exponent,))
    state = initial_state(OptimizerSpec(), layout)
    # A moment from a step before changes nothing when no share of it goes on.
    state.m[::2] = -1.5
    found, _ = optimizer_step(model, delta, state, OptimizerSpec(), layout, lattice)
    assert found.tobytes() == apply_aggregate(model, delta, layout, lattice).tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_every_coordinate_follows_the_formula_to_the_bit(name):
    random = np.random.default_rng(2)
    spec = optimizer_spec(name, BUSY[name])
    model, state = some_model(random), initial_state(spec, LAYOUT)
    second = state.v if state.v.size else state.m
    plain = [tuple(map(float, values)) for values in zip(model, state.m, second, strict=True)]
    for _ in range(6):
        delta = some_aggregate(random)
        steps = apply_aggregate(np.zeros(LAYOUT.size, np.float32), delta, LAYOUT, LATTICE)
        model, state = optimizer_step(model, delta, state, spec, LAYOUT, LATTICE)
        plain = [
            plain_step(name, x, float(step), m, v, BUSY[name])
            for (x, m, v), step in zip(plain, steps, strict=True)
        ]
        assert model.tolist() == [x for x, _, _ in plain]
        assert state.m.tolist() == [m for _, m, _ in plain]
        if state.v.size:
            assert state.v.tolist() == [v for _, _, v in plain]


@pytest.mark.parametrize(
    ("spec", "make"),
    [
        (
            optimizer_spec("sgd", {"learning_rate": 0.7, "momentum": 0.9}),
            lambda weights: torch.optim.SGD([weights], lr=0.7, momentum=0.9),
        ),
        (
            optimizer_spec("fedadagrad", {"learning_rate": 0.3, "tau": 0.01}),
            lambda weights: torch.optim.Adagrad(
                [weights], lr=0.3, initial_accumulator_value=0.0001, eps=0.01
            ),
        ),
    ],
    ids=["SGD", "Adagrad"],
)
def test_torch_takes_the_same_steps_against_the_gradient(spec, make):
    random = np.random.default_rng(3)
    model, state = some_model(random), initial_state(spec, LAYOUT)
    weights = torch.tensor(model.astype(np.float64), requires_grad=True)
    torch_optimizer = make(weights)
    for _ in range(10):
        delta = some_aggregate(random)
        steps = apply_aggregate(np.zeros(LAYOUT.size, np.float32), delta, LAYOUT, LATTICE)
        model, state = optimizer_step(model, delta, state, spec, LAYOUT, LATTICE)
        weights.grad = -torch.from_numpy(steps.astype(np.float64))
        torch_optimizer.step()
    np.testing.assert_allclose(model, weights.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("block", [1, 7, 64, 10_000])
def test_the_size_of_a_block_changes_no_bit(name, block):
    spec = optimizer_spec(name, BUSY[name])
    assert trajectory(spec, 3, block=block) == trajectory(spec, 3)


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("sgd", "997a4a56c5c58de8"),
        ("fedadam", "ee161c556c8c2215"),
        ("fedyogi", "cfef483a48585070"),
        ("fedadagrad", "a6700b0a24fa3786"),
    ],
)
def test_twenty_steps_have_these_bytes_on_every_machine(name, digest):
    # Weights and deltas from integers alone, since NumPy's normal numbers may change with its version.
    spec = optimizer_spec(name, BUSY[name])
    model = (np.arange(LAYOUT.size, dtype=np.float32) - 70) / np.float32(64)
    state = initial_state(spec, LAYOUT)
    for step in range(20):
        numerators = (np.arange(LAYOUT.size) * 7919 * (step + 1)) % 196_601 - 98_300
        model, state = optimizer_step(model, aggregate(numerators, 3), state, spec, LAYOUT, LATTICE)
    assert hashlib.sha256(model.astype("<f4").tobytes() + state.digest()).hexdigest()[:16] == digest


@pytest.mark.parametrize("name", NAMES)
def test_a_step_leaves_its_arguments_as_they_are(name):
    random = np.random.default_rng(4)
    spec = optimizer_spec(name, BUSY[name])
    model, state, delta = some_model(random), initial_state(spec, LAYOUT), some_aggregate(random)
    before = model.tobytes(), state.digest(), delta.digest()
    optimizer_step(model, delta, state, spec, LAYOUT, LATTICE)
    assert (model.tobytes(), state.digest(), delta.digest()) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_step_takes_little_memory_beside_its_results(name):
    size = 1_500_000
    layout, lattice = Layout((TensorSpec("w", (size,)),)), Lattice(16, (-20,))
    spec = optimizer_spec(name, BUSY[name])
    model, state = np.zeros(size, np.float32), initial_state(spec, layout)
    delta = aggregate(np.arange(size) % 32_768, 1)
    tracemalloc.start()
    found, after = optimizer_step(model, delta, state, spec, layout, lattice)
    beside = tracemalloc.get_traced_memory()[1] - found.nbytes - after.m.nbytes - after.v.nbytes
    tracemalloc.stop()
    assert beside < 4_500_000


@pytest.mark.parametrize("name", NAMES)
def test_an_aggregate_of_zeros_moves_nothing_at_first(name):
    spec = optimizer_spec(name)
    model = some_model(np.random.default_rng(5))
    zeros = aggregate(np.zeros(LAYOUT.size, np.int64), 1)
    found, _ = optimizer_step(model, zeros, initial_state(spec, LAYOUT), spec, LAYOUT, LATTICE)
    assert found.tobytes() == model.tobytes()


def test_the_state_tells_two_histories_apart():
    spec = optimizer_spec("fedadam")
    assert trajectory(spec, 1, seed=1)[1] != trajectory(spec, 1, seed=2)[1]


def test_a_weight_beyond_float32_is_refused_by_name():
    layout, lattice = Layout((TensorSpec("a", (1,)), TensorSpec("b", (2,)))), Lattice(16, (0, 100))
    spec = optimizer_spec("sgd", {"learning_rate": 1000})
    model = np.array([0, 0, 3.4e38], np.float32)
    with pytest.raises(ModelOverflow, match=r"weight 2 \(tensor 'b'\) would become inf"):
        optimizer_step(
            model, aggregate([0, 0, 32_767], 1), initial_state(spec, layout), spec, layout, lattice
        )


@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad"])
def test_a_moment_beyond_float32_is_refused_by_name(name):
    layout = Layout((TensorSpec("a", (1,)),))
    spec = optimizer_spec(name)
    with pytest.raises(ModelOverflow, match="second moment 0"):
        optimizer_step(
            np.zeros(1, np.float32),
            aggregate([32_767], 1),
            initial_state(spec, layout),
            spec,
            layout,
            Lattice(16, (100,)),
        )


def test_a_weight_that_is_not_a_number_is_refused_by_name():
    model = np.zeros(LAYOUT.size, np.float32)
    model[150] = np.nan
    zeros = aggregate(np.zeros(LAYOUT.size, np.int64), 1)
    spec = optimizer_spec("fedyogi")
    with pytest.raises(ModelOverflow, match=r"weight 150 \(tensor 'b'\) would become nan"):
        optimizer_step(model, zeros, initial_state(spec, LAYOUT), spec, LAYOUT, LATTICE)


@pytest.mark.parametrize(
    ("model", "m", "v", "error"),
    [
        (np.zeros(3, np.float32), np.zeros(153, np.float32), np.ones(153, np.float32), LayoutMismatch),
        (np.zeros(153), np.zeros(153, np.float32), np.ones(153, np.float32), LayoutMismatch),
        (np.zeros(153, np.float32), np.zeros(3, np.float32), np.ones(153, np.float32), LayoutMismatch),
        (np.zeros(153, np.float32), np.zeros(153, np.float32), np.ones(3, np.float32), LayoutMismatch),
        (np.zeros(153, np.float32), np.zeros(153, np.float32), np.ones(0, np.float32), OptimizerInvalid),
        (np.zeros(153, np.float32), np.zeros(153, np.float32), -np.ones(153, np.float32), OptimizerInvalid),
    ],
)
def test_arrays_of_another_model_or_optimizer_are_refused(model, m, v, error):
    zeros = aggregate(np.zeros(LAYOUT.size, np.int64), 1)
    with pytest.raises(error):
        optimizer_step(model, zeros, OptimizerState(m, v), optimizer_spec("fedadam"), LAYOUT, LATTICE)


def test_an_aggregate_of_another_model_is_refused():
    with pytest.raises(LayoutMismatch):
        optimizer_step(
            np.zeros(LAYOUT.size, np.float32),
            aggregate([1], 1),
            initial_state(OptimizerSpec(), LAYOUT),
            OptimizerSpec(),
            LAYOUT,
            LATTICE,
        )


@pytest.mark.parametrize(
    "make",
    [
        lambda: OptimizerSpec("adamw", ()),
        lambda: OptimizerSpec(["sgd"], ()),
        lambda: OptimizerSpec("sgd", (("learning_rate", 1),)),
        lambda: OptimizerSpec("sgd", (("momentum", 0), ("learning_rate", 1))),
        lambda: OptimizerSpec("sgd", (("learning_rate", 0), ("momentum", 0))),
        lambda: OptimizerSpec("sgd", (("learning_rate", 1), ("momentum", 1_000_000))),
        lambda: OptimizerSpec("sgd", (("learning_rate", 1), ("momentum", True))),
        lambda: OptimizerSpec("sgd", (("learning_rate", 1), ("momentum", 0), ("nesterov", 1))),
        lambda: optimizer_spec("sgd", {"tau": 1}),
        lambda: optimizer_spec("sgd", {"momentum": 0.1234567}),
        lambda: optimizer_spec("sgd", {"momentum": float("nan")}),
        lambda: optimizer_spec("sgd", {"momentum": "much"}),
        lambda: optimizer_spec("sgd", {"momentum": True}),
        lambda: optimizer_spec("sgd", {"momentum": "1e-999999"}),
        lambda: optimizer_spec("sgd", {"learning_rate": "1e999999"}),
        lambda: optimizer_spec("fedadam", {"tau": 0}),
        lambda: OptimizerSpec.from_document({"name": "sgd"}),
        lambda: OptimizerSpec.from_document({"name": "sgd", "params": {1: 1}}),
        lambda: OptimizerSpec.from_document({"name": "sgd", "params": {"learning_rate": 0.1, "momentum": 0}}),
    ],
)
def test_an_optimizer_that_cannot_be_is_refused(make):
    with pytest.raises(OptimizerInvalid):
        make()


@pytest.mark.parametrize("name", NAMES)
def test_a_specification_survives_its_document(name):
    spec = optimizer_spec(name, BUSY[name])
    assert OptimizerSpec.from_document(spec.to_document()) == spec


def test_a_parameter_is_the_same_however_it_is_written():
    written = [0.9, "0.9", Fraction(9, 10), "0.90", np.float64(0.9)]
    specs = {optimizer_spec("sgd", {"momentum": value}) for value in written}
    assert {spec.canonical() for spec in specs} == {b"sgd learning_rate=1000000 momentum=900000"}


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_says_its_formula_and_source(name):
    assert "20" in OPTIMIZERS[name].documentation
    assert "=" in OPTIMIZERS[name].documentation
