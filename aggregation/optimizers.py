"""Server optimizers by name, and the specification of one: SGD with momentum, FedAdam, FedYogi, FedAdagrad.

They take the aggregate for a step against the gradient. How the step is made is in `optimizer_step`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, Inexact, localcontext
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.errors import OptimizerInvalid

MILLION = 1_000_000
"""Parameters are whole millionths, so that every machine reads the same number."""

Block = npt.NDArray[np.float64]


class Coefficients:
    """A specification's parameters as float64, each the correctly rounded quotient of two integers."""

    def __init__(self, parameters: Mapping[str, int]) -> None:
        self._parameters = parameters

    def __getitem__(self, name: str) -> float:
        return self._parameters[name] / MILLION

    def rest(self, name: str) -> float:
        """1 - parameter, rounded once."""
        return (MILLION - self._parameters[name]) / MILLION


@dataclass(frozen=True, slots=True)
class OptimizerParameter:
    """A parameter in millionths, both bounds included; `default` is what `optimizer_spec` fills in."""

    name: str
    least: int
    most: int
    default: int
    meaning: str


@dataclass(frozen=True, slots=True)
class Optimizer:
    """A rule elementwise in float64. `second` is None when there is no second moment v."""

    name: str
    first: Callable[[Block, Block, Coefficients], Block]
    """(m, delta) to the next m."""
    second: Callable[[Block, Block, Coefficients], Block] | None
    """(v, delta) to the next v."""
    parameters: tuple[OptimizerParameter, ...]

    @property
    def documentation(self) -> str:
        """Formula and source."""
        return ((self.second or self.first).__doc__ or "").strip()


def sgd(m: Block, delta: Block, c: Coefficients) -> Block:
    """m' = momentum m + delta; x' = x + learning_rate m' (Polyak 1964; FedAvgM, Hsu et al. 2019).

    Learning rate 1 without momentum is `apply_aggregate`. From m = 0, x = 0, with delta = 1 twice, momentum
    0.5 and learning rate 1: m = 1, 1.5 and x = 1, 2.5.
    """
    return c["momentum"] * m + delta


def averaged(m: Block, delta: Block, c: Coefficients) -> Block:
    """m' = beta1 m + (1 - beta1) delta."""
    return c["beta1"] * m + c.rest("beta1") * delta


def fedadam(v: Block, delta: Block, c: Coefficients) -> Block:
    """v' = beta2 v + (1 - beta2) delta^2; x' = x + learning_rate m' / (sqrt(v') + tau).

    Reddi et al. 2021, algorithm 2: m' = beta1 m + (1 - beta1) delta, v starts at tau^2, no bias correction.
    """
    return c["beta2"] * v + c.rest("beta2") * (delta * delta)


def fedyogi(v: Block, delta: Block, c: Coefficients) -> Block:
    """v' = v - (1 - beta2) delta^2 sign(v - delta^2); the rest as for FedAdam (Reddi et al. 2021)."""
    square = delta * delta
    return v - c.rest("beta2") * square * np.sign(v - square)


def fedadagrad(v: Block, delta: Block, c: Coefficients) -> Block:
    """v' = v + delta^2; the rest as for FedAdam, beta1 usually 0 (Reddi et al. 2021)."""
    return v + delta * delta


_MOST = 1_000 * MILLION
_BETA1 = OptimizerParameter("beta1", 0, MILLION - 1, 900_000, "memory of the first moment")
_BETA2 = OptimizerParameter("beta2", 0, MILLION - 1, 990_000, "memory of the second moment")
_RATE = OptimizerParameter("learning_rate", 1, _MOST, 10_000, "length of a step")
_TAU = OptimizerParameter("tau", 1, _MOST, 1_000, "adaptivity: below it a value's own size counts little")

_ALL = (
    Optimizer(
        "sgd",
        sgd,
        None,
        (
            OptimizerParameter("learning_rate", 1, _MOST, MILLION, "factor of the aggregate"),
            OptimizerParameter("momentum", 0, MILLION - 1, 0, "share of the last step that goes on"),
        ),
    ),
    Optimizer("fedadam", averaged, fedadam, (_BETA1, _BETA2, _RATE, _TAU)),
    Optimizer("fedyogi", averaged, fedyogi, (_BETA1, _BETA2, _RATE, _TAU)),
    Optimizer(
        "fedadagrad",
        averaged,
        fedadagrad,
        (OptimizerParameter("beta1", 0, MILLION - 1, 0, _BETA1.meaning), _RATE, _TAU),
    ),
)

OPTIMIZERS: dict[str, Optimizer] = {optimizer.name: optimizer for optimizer in _ALL}
"""Every server optimizer by the name that configuration, command line and chain share."""


@dataclass(frozen=True, slots=True)
class OptimizerSpec:
    """An optimizer and all its parameters in whole millionths, sorted by name.

    Raises OptimizerInvalid for an unknown optimizer and for a parameter that is missing, unknown or out of
    range.
    """

    name: str = "sgd"
    params: tuple[tuple[str, int], ...] = (("learning_rate", MILLION), ("momentum", 0))

    def __post_init__(self) -> None:
        known = {parameter.name: parameter for parameter in _find(self.name).parameters}
        names = [name for name, _ in self.params]
        if names != sorted(set(names)):
            raise OptimizerInvalid(f"{self.name}: parameters must be distinct and sorted by name: {names}")
        for name, value in self.params:
            parameter = known.get(name)
            if parameter is None:
                raise OptimizerInvalid(f"{self.name} has no parameter {name!r}; known: {', '.join(known)}")
            if type(value) is not int or not parameter.least <= value <= parameter.most:
                raise OptimizerInvalid(
                    f"{self.name}: {name} is {value!r} millionths, "
                    f"expected {parameter.least} to {parameter.most}"
                )
        if missing := [parameter for name, parameter in known.items() if name not in names]:
            raise OptimizerInvalid(f"{self.name} needs the parameter {missing[0].name}: {missing[0].meaning}")

    @property
    def optimizer(self) -> Optimizer:
        return OPTIMIZERS[self.name]

    @property
    def coefficients(self) -> Coefficients:
        """The parameters as float64."""
        return Coefficients(dict(self.params))

    def canonical(self) -> bytes:
        """ASCII "sgd learning_rate=1000000 momentum=0": the same bytes for the same optimizer, everywhere."""
        return " ".join([self.name, *(f"{name}={value}" for name, value in self.params)]).encode("ascii")

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of `canonical()`."""
        return hashlib.sha256(self.canonical()).digest()

    def to_document(self) -> dict[str, object]:
        """Plain values for a canonical codec: name and a map of parameters in millionths."""
        return {"name": self.name, "params": dict(self.params)}

    @classmethod
    def from_document(cls, document: object) -> OptimizerSpec:
        """Read what `to_document` wrote. Raises OptimizerInvalid for anything else."""
        if not isinstance(document, dict) or set(document) != {"name", "params"}:
            raise OptimizerInvalid("an optimizer is a map of exactly name and params")
        params = document["params"]
        if not isinstance(params, dict) or not all(isinstance(name, str) for name in params):
            raise OptimizerInvalid("an optimizer's params are a map from names to whole millionths")
        return cls(document["name"], tuple(sorted(params.items())))


def optimizer_spec(
    name: str, params: Mapping[str, int | float | str | Fraction] | None = None
) -> OptimizerSpec:
    """The specification for parameters as people write them: 0.9, "0.9" or Fraction(9, 10), not millionths.

    What is left out has its default. Raises OptimizerInvalid, also for a value between two millionths.
    """
    values = {parameter.name: parameter.default for parameter in _find(name).parameters}
    values.update({key: _millionths(name, key, value) for key, value in (params or {}).items()})
    return OptimizerSpec(name, tuple(sorted(values.items())))


def _find(name: object) -> Optimizer:
    found = OPTIMIZERS.get(name) if isinstance(name, str) else None
    if found is None:
        raise OptimizerInvalid(f"no optimizer {name!r}; known: {', '.join(OPTIMIZERS)}")
    return found


def _millionths(optimizer: str, name: str, value: int | float | str | Fraction) -> int:
    try:
        scaled: Fraction | Decimal
        if isinstance(value, Fraction):
            scaled = value * MILLION
        else:
            with localcontext() as context:
                context.traps[Inexact] = True
                # Through text, the float 0.9 is nine tenths.
                scaled = Decimal(str(value)) * MILLION
        if -_MOST <= scaled <= _MOST and scaled == round(scaled):
            return int(scaled)
    except (ValueError, ArithmeticError):
        pass
    raise OptimizerInvalid(
        f"{optimizer}: {name} is {value!r}, expected a number of at most {_MOST // MILLION} "
        "in whole millionths"
    )
