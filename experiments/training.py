"""Local training of many members from one model: all at once where that is faster, or one after the other.

A function of the model, the members' examples, the seed and the round, plus each member's own momentum.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.optim.sgd import sgd

from folkmoot.experiments.cells import Training
from folkmoot.experiments.models import Dropout, channels_last
from folkmoot.node.datasets import Split

__all__ = ["Batches", "LocalTraining", "learning_rate"]

Floats = npt.NDArray[np.float32]

_ORDER, _MASKS = 1, 2
"""What a member's random numbers are for."""
ADAM_BETA2, ADAM_EPSILON = 0.999, 1e-8


def learning_rate(training: Training, round_number: int, rounds: int) -> float:
    """The learning rate in round 0 to rounds - 1."""
    if training.schedule == "cosine":
        return training.lr * 0.5 * (1 + math.cos(math.pi * round_number / rounds))
    if training.schedule == "step":
        return float(training.lr * 0.1 ** (3 * round_number // rounds))
    return training.lr


class Batches:
    """Which examples a member sees: pass after pass over all of them, each in a new order.

    A function of seed, member and position, so that it can begin anywhere.
    """

    def __init__(self, examples: int, seed: int, member: int) -> None:
        self._examples, self._seed, self._member = examples, seed, member
        self._pass, self._order = -1, np.empty(0, np.int64)

    def take(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """The indices at the positions start to start + count - 1 of the endless sequence."""
        parts = []
        while count:
            number, offset = divmod(start, self._examples)
            part = self._permutation(number)[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts)

    def _permutation(self, number: int) -> npt.NDArray[np.int64]:
        if number != self._pass:
            random = np.random.default_rng([_ORDER, self._seed, self._member, number])
            self._pass, self._order = number, random.permutation(self._examples)
        return self._order


class LocalTraining:
    """The members' training. It must be called for one round after the other: momentum is kept.

    model: its parameters are replaced in every call. data: one Split for each member. numbers: the members'
    indices in the federation, which seed their batches. vectorised: all members in one call of PyTorch.
    convolutional: its four-dimensional parameters are kernels, and it takes images with the channels last.
    """

    def __init__(
        self,
        model: nn.Module,
        training: Training,
        rounds: int,
        data: Sequence[Split],
        numbers: Sequence[int],
        seed: int,
        *,
        vectorised: bool,
        convolutional: bool = False,
        device: str = "cpu",
    ) -> None:
        # A call puts weights into a network for its time, so each thread has a network of its own.
        self._models = [model.to(device).train()]
        self._training, self._rounds, self._seed = training, rounds, seed
        self._numbers, self._vectorised, self._device = numbers, vectorised, device
        self._convolutional = convolutional
        self._dtype = getattr(torch, training.precision)
        self._features = [torch.from_numpy(split.features).to(device, self._dtype) for split in data]
        self._labels = [torch.from_numpy(split.labels).to(device) for split in data]
        self._batches = [
            Batches(len(split.labels), seed, number) for split, number in zip(data, numbers, strict=True)
        ]
        self._shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        self._dropouts = {
            f"{name}.mask" if name else "mask": layer
            for name, layer in model.named_modules()
            if isinstance(layer, Dropout)
        }
        size = sum(math.prod(shape) for shape in self._shapes.values())
        kept = {"adam": 2, "sgd": int(training.momentum > 0)}[training.optimizer]
        self._state = [torch.zeros((len(data), size), device=device) for _ in range(kept)]
        self._steps_done = [0] * len(data)
        self._trained = torch.empty((len(data), size), device=device)

    @property
    def examples(self) -> list[int]:
        """How many examples each member has."""
        return [len(labels) for labels in self._labels]

    def train(self, weights: Floats, round_number: int) -> Floats:
        """Each member's weights after its local training from `weights` (d,): float32 (members, d).

        The next call writes into the same array.
        """
        self._train(weights, round_number, None)
        result: Floats = self._trained.cpu().numpy()
        return result

    def move(self, weights: Floats, round_number: int, moves: Floats) -> None:
        """Train, and write how far each member moved from `weights` (d,) into `moves` (members, d)."""
        self._train(weights, round_number, torch.from_numpy(moves))

    def _train(self, weights: Floats, round_number: int, moves: torch.Tensor | None) -> None:
        steps = [self._steps(count) for count in self.examples]
        rate = learning_rate(self._training, round_number, self._rounds)
        start = torch.from_numpy(weights).to(self._device)
        if not self._vectorised:
            self._one_after_the_other(start, steps, rate, moves)
            return
        self._trained.copy_(start)
        for step in range(max(steps)):
            active = [i for i, count in enumerate(steps) if step < count]
            self._step(active, rate)
        if moves is not None:
            torch.sub(self._trained.cpu(), start.cpu(), out=moves)

    def _one_after_the_other(
        self, start: torch.Tensor, steps: Sequence[int], rate: float, moves: torch.Tensor | None
    ) -> None:
        """Each member on one thread, as many members at a time as PyTorch may use threads."""
        allowed = torch.get_num_threads()
        threads = min(allowed, len(steps))
        while len(self._models) < threads:
            self._models.append(copy.deepcopy(self._models[0]))

        def work(model: int) -> None:
            for member in range(model, len(steps), threads):
                # .data counts its changes by itself: other threads change other rows meanwhile.
                self._trained.data[member].copy_(start)
                for _ in range(steps[member]):
                    self._step([member], rate, model)
                if moves is not None:
                    torch.sub(self._trained.data[member].cpu(), start.cpu(), out=moves[member])

        torch.set_num_threads(1)
        try:
            if threads == 1:
                work(0)
            else:
                with ThreadPoolExecutor(threads) as pool:
                    list(pool.map(work, range(threads)))
        finally:
            torch.set_num_threads(allowed)

    def _steps(self, examples: int) -> int:
        if self._training.steps:
            return self._training.steps
        return max(1, math.ceil(self._training.epochs * examples / self._training.batch))

    def _step(self, members: list[int], rate: float, model: int = 0) -> None:
        """One step of the optimizer for some members, in place."""
        rows: slice | list[int] = members
        if len(members) == len(self._trained):
            rows = slice(None)
        elif len(members) == 1:
            rows = slice(members[0], members[0] + 1)
        weights, state = self._trained.data[rows], [kept.data[rows] for kept in self._state]
        gradients = self._gradients(weights, members, model)
        tensors, states = self._tensors(weights), [self._tensors(kept) for kept in state]
        counts = torch.tensor([self._steps_done[i] + 1 for i in members], device=weights.device)
        for name, gradient in gradients.items():
            self._move(tensors[name], [kept[name] for kept in states], gradient, counts, rate)
        if isinstance(rows, list):
            self._trained[rows] = weights
            for kept, part in zip(self._state, state, strict=True):
                kept[rows] = part
        for member in members:
            self._steps_done[member] += 1

    def _gradients(self, weights: torch.Tensor, members: list[int], model: int) -> dict[str, torch.Tensor]:
        """The gradients (k, ...) of the mean cross-entropy over each member's next batch, by parameter."""
        batch = self._training.batch
        picked = [
            torch.from_numpy(self._batches[i].take(self._steps_done[i] * batch, batch)).to(self._device)
            for i in members
        ]
        masks = self._masks(members)
        if self._vectorised:
            features = torch.stack([self._features[i][p] for i, p in zip(members, picked, strict=True)])
            labels = torch.stack([self._labels[i][p] for i, p in zip(members, picked, strict=True)])
            found = vmap(grad(partial(self._loss, model)))
            return dict(found(self._tensors(weights.to(self._dtype)), masks, features, labels))
        (member,), (chosen,) = members, picked
        tensors = {
            name: self._ordered(tensor[0]).detach().requires_grad_()
            for name, tensor in self._tensors(weights.to(self._dtype)).items()
        }
        loss = self._loss(
            model,
            tensors,
            {name: mask[0] for name, mask in masks.items()},
            self._ordered(self._features[member][chosen]),
            self._labels[member][chosen],
        )
        gradients = torch.autograd.grad(loss, list(tensors.values()))
        return {name: gradient[None] for name, gradient in zip(tensors, gradients, strict=True)}

    def _ordered(self, tensor: torch.Tensor) -> torch.Tensor:
        return channels_last(tensor) if self._convolutional and tensor.dim() == 4 else tensor

    def _loss(
        self,
        model: int,
        tensors: Mapping[str, torch.Tensor],
        masks: Mapping[str, torch.Tensor],
        features: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        output = functional_call(self._models[model], {**tensors, **masks}, (features,))
        return nn.functional.cross_entropy(output.float(), labels)

    def _tensors(self, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """The model's parameters (k, ...) as views of the flat weights (k, d)."""
        sizes = [math.prod(shape) for shape in self._shapes.values()]
        parts = torch.split(weights, sizes, dim=1)
        return {
            name: part.view(len(weights), *shape)
            for part, (name, shape) in zip(parts, self._shapes.items(), strict=True)
        }

    def _masks(self, members: list[int]) -> dict[str, torch.Tensor]:
        """Dropout masks (k, batch, ...) by buffer, from each member's own random numbers."""
        masks: dict[str, torch.Tensor] = {}
        if not self._dropouts:
            return masks
        randoms = [
            np.random.default_rng([_MASKS, self._seed, self._numbers[i], self._steps_done[i]])
            for i in members
        ]
        for name, layer in self._dropouts.items():
            shape = (self._training.batch, *layer.shape)
            drawn = [random.bytes(2 * math.prod(shape)) for random in randoms]
            kept = np.stack([np.frombuffer(b, "<u2").reshape(shape) >= layer.dropped for b in drawn])
            masks[name] = torch.from_numpy(kept).to(self._device, self._dtype)
        return masks

    def _move(
        self,
        weights: torch.Tensor,
        state: list[torch.Tensor],
        gradient: torch.Tensor,
        counts: torch.Tensor,
        rate: float,
    ) -> None:
        """Move one parameter (k, ...) of k members in place; `counts` (k,) are their step numbers, from 1."""
        training = self._training
        if training.optimizer == "sgd":
            sgd(
                [weights],
                [gradient.to(weights.dtype).contiguous()],
                [state[0] if state else None],
                # The fused kernel takes every tensor as contiguous.
                fused=weights.is_contiguous() and weights.device.type == "cpu",
                weight_decay=training.weight_decay,
                momentum=training.momentum,
                lr=rate,
                dampening=training.momentum,
                nesterov=False,
                maximize=False,
            )
            return
        if training.weight_decay:
            gradient = gradient + training.weight_decay * weights
        momentum, squares = state
        momentum.mul_(training.momentum).add_(gradient, alpha=1 - training.momentum)
        squares.mul_(ADAM_BETA2).addcmul_(gradient, gradient, value=1 - ADAM_BETA2)
        counts = counts.reshape(-1, *(1 for _ in weights.shape[1:]))
        first = momentum / (1 - training.momentum**counts)
        second = squares / (1 - ADAM_BETA2**counts)
        weights.sub_(rate * first / (second.sqrt() + ADAM_EPSILON))
