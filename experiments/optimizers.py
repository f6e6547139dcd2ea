"""One step of a member's optimizer, in place, with the state that it keeps from round to round."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.optim.sgd import sgd

from folkmoot.experiments.cells import Training

__all__ = ["kept_rows", "optimizer_step"]

ADAM_BETA2, ADAM_EPSILON = 0.999, 1e-8

Tensors = Sequence[torch.Tensor]


def kept_rows(training: Training) -> int:
    """How many numbers an optimizer keeps for each weight."""
    return {"adam": 2, "sgd": int(training.momentum > 0)}[training.optimizer]


def optimizer_step(
    training: Training,
    weights: Tensors,
    state: Sequence[Tensors],
    gradients: Tensors,
    counts: torch.Tensor,
    rate: float,
) -> None:
    """Move the parameters `weights` in place along `gradients` of the same shapes.

    They are one member's, or (k, ...) of k members. state: `kept_rows` lists of tensors like the weights.
    counts: how many steps each member has taken, this one included, () or (k,). rate: the learning rate.
    """
    gradients = [g.to(w.dtype).contiguous() for g, w in zip(gradients, weights, strict=True)]
    if training.optimizer == "sgd":
        _sgd(training, weights, state, gradients, rate)
        return
    if training.weight_decay:
        gradients = [g + training.weight_decay * w for g, w in zip(gradients, weights, strict=True)]
    for weight, momentum, squares, gradient in zip(weights, *state, gradients, strict=True):
        momentum.mul_(training.momentum).add_(gradient, alpha=1 - training.momentum)
        squares.mul_(ADAM_BETA2).addcmul_(gradient, gradient, value=1 - ADAM_BETA2)
        count = counts.reshape(-1, *(1 for _ in weight.shape[1:])) if counts.dim() else counts
        first = momentum / (1 - training.momentum**count)
        second = squares / (1 - ADAM_BETA2**count)
        weight.sub_(rate * first / (second.sqrt() + ADAM_EPSILON))


def _sgd(
    training: Training, weights: Tensors, state: Sequence[Tensors], gradients: list[torch.Tensor], rate: float
) -> None:
    sgd(
        list(weights),
        gradients,
        list(state[0]) if state else [None] * len(weights),
        # The fused kernel takes every tensor as contiguous.
        fused=all(weight.is_contiguous() and weight.device.type == "cpu" for weight in weights),
        weight_decay=training.weight_decay,
        momentum=training.momentum,
        lr=rate,
        dampening=training.momentum,
        nesterov=False,
        maximize=False,
    )
