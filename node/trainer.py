"""The border to the member's own training code: loading it, calling it, and checking what comes back.

A trainer has the signatures of Flower's NumPyClient, so such a client runs unchanged. Nothing here trains.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.layout import Layout

__all__ = [
    "Config",
    "Evaluation",
    "Fitted",
    "Scalar",
    "Trainer",
    "TrainerError",
    "Weights",
    "load_trainer",
    "run_evaluate",
    "run_fit",
]

Array = npt.NDArray[np.float32]
Weights = list[Array]
"""A model as float32 tensors in the order of `Trainer.initial_weights`."""
Scalar = bool | bytes | float | int | str
Config = dict[str, Scalar]
"""What the node tells a trainer: "task" and "round" (from 0), in `fit` also "member" (its seat), all int, and
what the task's specification adds."""

MAX_EXAMPLES = 2**64 - 1


class TrainerError(Exception):
    """A trainer cannot be loaded, failed, or returned something that is not a model."""


class Trainer(Protocol):
    """A member's training code. It may raise anything; the node reports it as a TrainerError."""

    def initial_weights(self) -> dict[str, Array]:
        """The model's tensors by name, float32, in the order in which `fit` takes and returns them.

        Only the member that opens a task is asked; everyone else starts from the task's genesis model.
        """

    def fit(self, weights: Weights, config: Config) -> tuple[Weights, int, dict[str, float]]:
        """Train from `weights` on the member's own data.

        Returns the trained weights (same shapes, float32), the number of examples used (at least 1), and
        metrics to log.
        """

    def evaluate(self, weights: Weights, config: Config) -> tuple[float, int, dict[str, float]]:
        """Loss of `weights`, the number of examples it was measured on, and metrics such as "accuracy"."""


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What one member's training gave: flat float32 weights in the layout's order, all finite."""

    weights: Array
    examples: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a model is worth to one member. `metrics` holds only finite numbers."""

    loss: float
    examples: int
    metrics: dict[str, float]


def load_trainer(target: str, options: Mapping[str, object]) -> Trainer:
    """Call the factory named "package.module:factory" with `options` as keyword arguments.

    The factory returns a `Trainer`, or an object with the methods of Flower's NumPyClient, whose tensors are
    then called "tensor_000", "tensor_001", … Raises TrainerError.
    """
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute):
        raise TrainerError(f"a trainer is named package.module:factory, found {target!r}")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except AttributeError:
        raise TrainerError(f"trainer {target!r}: module {module_name} has no {attribute!r}") from None
    except Exception as error:
        raise TrainerError(
            f"trainer {target!r}: cannot import {module_name} ({type(error).__name__}: {error}); "
            "is its package installed in the node's environment, or its folder on PYTHONPATH?"
        ) from error
    if not callable(factory):
        raise TrainerError(f"trainer {target!r}: {attribute!r} is a {type(factory).__name__}, not a factory")
    try:
        trainer = factory(**options)
    except Exception as error:
        raise TrainerError(
            f"trainer {target!r}: the factory refused the options {sorted(options)} "
            f"({type(error).__name__}: {error})"
        ) from error
    return _as_trainer(target, trainer)


def run_fit(trainer: Trainer, weights: Array, layout: Layout, config: Config) -> Fitted:
    """Train from flat weights and check the answer. Raises TrainerError, which names the tensor at fault."""
    try:
        answer = trainer.fit(_tensors(weights, layout), dict(config))
    except Exception as error:
        raise TrainerError(f"fit failed in round {config.get('round')!r}: {_describe(error)}") from error
    trained, examples, metrics = _triple("fit", answer)
    return Fitted(_flat(trained, layout), _examples("fit", examples), _metrics("fit", metrics))


def run_evaluate(trainer: Trainer, weights: Array, layout: Layout, config: Config) -> Evaluation:
    """Evaluate flat weights and check the answer. Raises TrainerError."""
    try:
        answer = trainer.evaluate(_tensors(weights, layout), dict(config))
    except Exception as error:
        raise TrainerError(f"evaluate failed in round {config.get('round')!r}: {_describe(error)}") from error
    loss, examples, metrics = _triple("evaluate", answer)
    if not _is_number(loss):
        raise TrainerError(f"evaluate returned as loss a {type(loss).__name__}, expected a number")
    return Evaluation(
        float(cast(float, loss)), _examples("evaluate", examples), _metrics("evaluate", metrics)
    )


@dataclass(frozen=True, slots=True)
class _FlowerClient:
    """A Flower NumPyClient behind the Trainer's signatures: only the first method differs."""

    client: Any

    def initial_weights(self) -> dict[str, Array]:
        return {f"tensor_{i:03}": array for i, array in enumerate(self.client.get_parameters({}))}

    def fit(self, weights: Weights, config: Config) -> tuple[Weights, int, dict[str, float]]:
        return cast("tuple[Weights, int, dict[str, float]]", self.client.fit(weights, config))

    def evaluate(self, weights: Weights, config: Config) -> tuple[float, int, dict[str, float]]:
        return cast("tuple[float, int, dict[str, float]]", self.client.evaluate(weights, config))


def _as_trainer(target: str, candidate: object) -> Trainer:
    missing = [name for name in ("fit", "evaluate") if not callable(getattr(candidate, name, None))]
    if not missing and callable(getattr(candidate, "initial_weights", None)):
        return cast(Trainer, candidate)
    if not missing and callable(getattr(candidate, "get_parameters", None)):
        return _FlowerClient(candidate)
    missing = missing or ["initial_weights (or get_parameters)"]
    raise TrainerError(
        f"trainer {target!r}: the factory returned a {type(candidate).__name__} without {', '.join(missing)}"
    )


def _tensors(weights: Array, layout: Layout) -> Weights:
    """Writable copies, so that a trainer that works in place cannot change the node's model."""
    return [np.array(tensor, dtype=np.float32) for tensor in layout.unflatten(weights).values()]


def _triple(method: str, answer: object) -> tuple[object, object, object]:
    if not isinstance(answer, (tuple, list)) or len(answer) != 3:
        raise TrainerError(
            f"{method} must return three values, found {type(answer).__name__}: {answer!r:.80}"
        )
    return answer[0], answer[1], answer[2]


def _flat(trained: object, layout: Layout) -> Array:
    """One float32 vector of the tensors in the layout's order, each checked."""
    if not isinstance(trained, Sequence) or isinstance(trained, (str, bytes)):
        raise TrainerError(f"fit must return a list of arrays, found a {type(trained).__name__}")
    if len(trained) != len(layout.tensors):
        raise TrainerError(
            f"fit returned {len(trained)} tensors, the model has {len(layout.tensors)} "
            f"(first {layout.tensors[0].name!r}, last {layout.tensors[-1].name!r})"
        )
    for tensor, spec in zip(trained, layout.tensors, strict=True):
        if not isinstance(tensor, np.ndarray) or tensor.dtype != np.float32:
            found = tensor.dtype if isinstance(tensor, np.ndarray) else type(tensor).__name__
            raise TrainerError(f"fit returned tensor {spec.name!r} as {found}, expected a float32 array")
        if tensor.shape != tuple(spec.shape):
            raise TrainerError(
                f"fit returned tensor {spec.name!r} with shape {tensor.shape}, expected {tuple(spec.shape)}"
            )
        if not np.isfinite(tensor).all():
            raise TrainerError(
                f"fit returned tensor {spec.name!r} with {int((~np.isfinite(tensor)).sum())} values that are "
                "NaN or infinite; training diverged, try a smaller learning rate"
            )
    return layout.flatten(list(trained))


def _examples(method: str, examples: object) -> int:
    count = int(examples) if isinstance(examples, (int, np.integer)) else 0
    if isinstance(examples, bool) or not 1 <= count <= MAX_EXAMPLES:
        raise TrainerError(f"{method} returned {examples!r} examples, expected an integer from 1 to 2^64 - 1")
    return count


def _metrics(method: str, metrics: object) -> dict[str, float]:
    """The metrics that are finite numbers; the others are for the trainer's own log."""
    if not isinstance(metrics, Mapping):
        raise TrainerError(f"{method} must return a dict of metrics, found a {type(metrics).__name__}")
    numbers = {str(name): float(value) for name, value in metrics.items() if _is_number(value)}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
