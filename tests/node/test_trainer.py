"""The border to a member's training code: what loads, and what is refused with the tensor's name."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from folkmoot.aggregation.layout import Layout, TensorSpec
from folkmoot.node.trainer import TrainerError, load_trainer, run_evaluate, run_fit

LAYOUT = Layout((TensorSpec("weight", (2, 3)), TensorSpec("bias", (3,))))
START = np.arange(9, dtype=np.float32)


class Answering:
    """A trainer whose fit and evaluate give a prepared answer."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def initial_weights(self) -> dict[str, np.ndarray]:
        return LAYOUT.unflatten(START)

    def fit(self, weights: list[np.ndarray], config: dict[str, Any]) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    evaluate = fit


class AddsOne(Answering):
    """A trainer that works in place, as careless code does."""

    def fit(self, weights: list[np.ndarray], config: dict[str, Any]) -> Any:
        for tensor in weights:
            tensor += 1
        return weights, 5, {"loss": 0.5, "note": "kept out", "bad": math.nan}


class FlowerStyleClient:
    """What a user of Flower's NumPyClient already has: get_parameters instead of initial_weights."""

    def __init__(self, start: float) -> None:
        self.start = start

    def get_parameters(self, config: dict[str, Any]) -> list[np.ndarray]:
        return [np.full((2, 3), self.start, np.float32), np.zeros(3, np.float32)]

    def fit(self, parameters: list[np.ndarray], config: dict[str, Any]) -> Any:
        return [tensor * 2 for tensor in parameters], 7, {}

    def evaluate(self, parameters: list[np.ndarray], config: dict[str, Any]) -> Any:
        return 0.25, 7, {"accuracy": 0.75}


def good() -> list[np.ndarray]:
    return [np.ones((2, 3), np.float32), np.ones(3, np.float32)]


@pytest.fixture
def training_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An importable module "clinic" with factories, as a member would write it."""
    (tmp_path / "clinic.py").write_text(
        "class Nothing: pass\n"
        "def empty(): return Nothing()\n"
        "def client(start=0.0):\n"
        f"    from {__name__.rpartition('.')[2]} import FlowerStyleClient\n"
        "    return FlowerStyleClient(start)\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, __name__.rpartition(".")[2], sys.modules[__name__])
    monkeypatch.delitem(sys.modules, "clinic", raising=False)
    return "clinic"


def test_a_flower_client_runs_unchanged(training_module: str) -> None:
    trainer = load_trainer(f"{training_module}:client", {"start": 4.0})
    initial = trainer.initial_weights()
    assert list(initial) == ["tensor_000", "tensor_001"]
    layout = Layout(tuple(TensorSpec(name, tensor.shape) for name, tensor in initial.items()))
    fitted = run_fit(trainer, layout.flatten(initial), layout, {"round": 0})
    assert fitted.weights.tolist() == [8.0] * 6 + [0.0] * 3
    assert fitted.examples == 7
    assert run_evaluate(trainer, fitted.weights, layout, {}).metrics == {"accuracy": 0.75}


def test_the_example_of_the_manual_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manual = (Path(__file__).parents[2] / "docs" / "trainer.md").read_text(encoding="utf-8")
    code = manual.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "manual_trainer.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    features = np.random.default_rng(1).normal(size=(200, 3))
    np.savetxt(tmp_path / "records.csv", np.c_[features, features[:, 0] > 0], delimiter=",")
    trainer = load_trainer("manual_trainer:create", {"records": str(tmp_path / "records.csv")})
    initial = trainer.initial_weights()
    layout = Layout.of(initial)
    fitted = run_fit(trainer, layout.flatten(initial), layout, {"round": 0})
    assert run_evaluate(trainer, fitted.weights, layout, {}).metrics["accuracy"] > 0.9


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("clinic", "package.module:factory"),
        ("clinic:", "package.module:factory"),
        ("no_such_package.x:create", "cannot import no_such_package.x"),
        ("clinic:absent", "has no 'absent'"),
        ("clinic:number", "is a int, not a factory"),
        ("clinic:empty", "Nothing without fit, evaluate"),
    ],
)
def test_a_trainer_that_cannot_be_loaded_is_named(training_module: str, target: str, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        load_trainer(target, {})


def test_options_that_the_factory_does_not_know_are_named(training_module: str) -> None:
    with pytest.raises(TrainerError, match=r"refused the options \['colour'\]"):
        load_trainer(f"{training_module}:client", {"colour": "red"})


def test_training_in_place_leaves_the_callers_model_alone() -> None:
    before = START.copy()
    fitted = run_fit(AddsOne(None), START, LAYOUT, {"round": 0})
    assert np.array_equal(before, START)
    assert np.array_equal(fitted.weights, START + 1)
    assert fitted.metrics == {"loss": 0.5}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "three values"),
        ((good(), 5), "three values"),
        ((good()[:1], 5, {}), "1 tensors, the model has 2"),
        ((7, 5, {}), "list of arrays, found a int"),
        (([good()[0].astype(np.float64), good()[1]], 5, {}), "'weight' as float64"),
        (([good()[0], [1.0, 2.0, 3.0]], 5, {}), "'bias' as list"),
        (([good()[0].T, good()[1]], 5, {}), r"'weight' with shape \(3, 2\), expected \(2, 3\)"),
        (([good()[0], good()[1] * np.float32("nan")], 5, {}), "'bias' with 3 values that are NaN"),
        (
            ([good()[0], good()[1] * np.float32("inf")], 5, {}),
            "'bias' with 3 values that are NaN or infinite",
        ),
        ((good(), 0, {}), "0 examples"),
        ((good(), -3, {}), "-3 examples"),
        ((good(), 2**64, {}), "examples, expected an integer"),
        ((good(), True, {}), "True examples"),
        ((good(), 2.5, {}), "2.5 examples"),
        ((good(), 5, None), "dict of metrics"),
        (RuntimeError("out of memory"), "fit failed in round 4: RuntimeError: out of memory"),
    ],
)
def test_a_bad_answer_of_fit_is_refused_by_name(answer: Any, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        run_fit(Answering(answer), START, LAYOUT, {"round": 4})


def test_a_bad_answer_of_evaluate_is_refused_by_name() -> None:
    for answer, message in (
        (("low", 5, {}), "as loss a str"),
        ((0.5, None, {}), "None examples"),
        (ValueError("no data"), "evaluate failed in round 4: ValueError: no data"),
    ):
        with pytest.raises(TrainerError, match=message):
            run_evaluate(Answering(answer), START, LAYOUT, {"round": 4})
