"""Local training of many members from one model: all at once where that is faster, or one after the other.

A function of the model, the members' examples, the seed and the round, plus each member's own momentum.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from folkmoot.experiments.cells import Training
from folkmoot.experiments.models import Dropout, channels_last
from folkmoot.experiments.optimizers import kept_rows, optimizer_step
from folkmoot.node.datasets import Split

__all__ = ["Batches", "LocalTraining", "learning_rate"]

Floats = npt.NDArray[np.float32]

_ORDER, _MASKS = 1, 2
"""What a member's random numbers are for."""


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


class _Network:
    """A network of one thread's own. It gets its weights, in the training's precision, before every step."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, *, convolutional: bool) -> None:
        self.model = model.to(dtype).train()
        self._parameters = list(model.parameters())
        self._dropouts = [layer for layer in model.modules() if isinstance(layer, Dropout)]
        self._ordered = channels_last if convolutional else torch.Tensor.contiguous
        for parameter in self._parameters:
            if parameter.dim() == 4:
                parameter.data = self._ordered(parameter.data)

    def gradients(
        self,
        weights: Sequence[torch.Tensor],
        masks: Sequence[torch.Tensor],
        features: torch.Tensor,
        labels: torch.Tensor,
    ) -> list[torch.Tensor]:
        """Of the mean cross-entropy over one batch, for each of the parameters `weights`."""
        for parameter, values in zip(self._parameters, weights, strict=True):
            parameter.data.copy_(values)
        for layer, mask in zip(self._dropouts, masks, strict=True):
            layer.mask = mask
        if features.dim() == 4:
            features = self._ordered(features)
        loss = nn.functional.cross_entropy(self.model(features).float(), labels)
        return list(torch.autograd.grad(loss, self._parameters))


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
        self._model = model.to(device).train()
        self._networks: list[_Network] = []
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
        self._state = [torch.zeros((len(data), size), device=device) for _ in range(kept_rows(training))]
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
            self._step_together(active, rate)
        if moves is not None:
            torch.sub(self._trained.cpu(), start.cpu(), out=moves)

    def _one_after_the_other(
        self, start: torch.Tensor, steps: Sequence[int], rate: float, moves: torch.Tensor | None
    ) -> None:
        """Each member on one thread, as many members at a time as PyTorch may use threads."""
        allowed = torch.get_num_threads()
        threads = min(allowed, len(steps))
        while len(self._networks) < threads:
            model = copy.deepcopy(self._model)
            self._networks.append(_Network(model, self._dtype, convolutional=self._convolutional))

        def work(thread: int) -> None:
            for member in range(thread, len(steps), threads):
                self._trained[member].copy_(start)
                for _ in range(steps[member]):
                    self._step_alone(member, rate, self._networks[thread])
                if moves is not None:
                    torch.sub(self._trained[member].cpu(), start.cpu(), out=moves[member])

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

    def _step_alone(self, member: int, rate: float, network: _Network) -> None:
        """One step of the optimizer for one member, in place."""
        weights, *state = (self._parts(rows[member]) for rows in (self._trained, *self._state))
        chosen, masks = self._next_batch(member), self._masks([member])
        features, labels = self._features[member][chosen], self._labels[member][chosen]
        gradients = network.gradients(weights, [mask[0] for mask in masks.values()], features, labels)
        optimizer_step(self._training, weights, state, gradients, self._count([member])[0], rate)

    def _step_together(self, members: list[int], rate: float) -> None:
        """One step of the optimizer for some members at once, in place."""
        rows: slice | list[int] = slice(None) if len(members) == len(self._trained) else members
        flat = [kept[rows] for kept in (self._trained, *self._state)]
        picked = [self._next_batch(i) for i in members]
        features = torch.stack([self._features[i][p] for i, p in zip(members, picked, strict=True)])
        labels = torch.stack([self._labels[i][p] for i, p in zip(members, picked, strict=True)])
        named = dict(zip(self._shapes, self._parts(flat[0].to(self._dtype)), strict=True))
        found = vmap(grad(self._loss))(named, self._masks(members), features, labels)
        weights, *state = map(self._parts, flat)
        counts = self._count(members).to(self._device)
        optimizer_step(self._training, weights, state, list(found.values()), counts, rate)
        if isinstance(rows, list):
            for kept, part in zip((self._trained, *self._state), flat, strict=True):
                kept[rows] = part

    def _count(self, members: Sequence[int]) -> torch.Tensor:
        """Count one more step for each, and say how many they have taken: (k,)."""
        for member in members:
            self._steps_done[member] += 1
        return torch.tensor([self._steps_done[member] for member in members])

    def _next_batch(self, member: int) -> torch.Tensor:
        batch = self._training.batch
        chosen = self._batches[member].take(self._steps_done[member] * batch, batch)
        return torch.from_numpy(chosen).to(self._device)

    def _loss(
        self,
        tensors: Mapping[str, torch.Tensor],
        masks: Mapping[str, torch.Tensor],
        features: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        output = functional_call(self._model, {**tensors, **masks}, (features,))
        return nn.functional.cross_entropy(output.float(), labels)

    def _parts(self, weights: torch.Tensor) -> list[torch.Tensor]:
        """The model's parameters (..., *shape) as views of flat weights (..., d)."""
        parts = torch.split(weights, [math.prod(shape) for shape in self._shapes.values()], dim=-1)
        return [
            part.view(*weights.shape[:-1], *shape)
            for part, shape in zip(parts, self._shapes.values(), strict=True)
        ]

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
