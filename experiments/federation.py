"""A cell at work: a federation in memory from its data to its result. The same cell gives the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from folkmoot.aggregation import (
    ATTACKS,
    FULL_SCORE,
    SCORES,
    Aggregate,
    AttackTarget,
    Knowledge,
    Layout,
    craft_updates,
    flip_labels,
    stamp_trigger,
)
from folkmoot.aggregation.attacks import Defence, resolve_parameters
from folkmoot.experiments.cells import HONEST, Cell, ImpossibleCell
from folkmoot.experiments.exchange import Applied, Exchange, LatticeExchange
from folkmoot.experiments.models import build_model, channels_last, find_model
from folkmoot.experiments.results import CellResult, Evaluation
from folkmoot.experiments.training import LocalTraining
from folkmoot.node.datasets import Dataset, Indices, Split
from folkmoot.node.partitions import divide
from folkmoot.node.torch_trainer import one_thread

__all__ = ["Federation", "run_cell"]

Floats = npt.NDArray[np.float32]
Observe = Callable[[Evaluation], None]

_LIES, _TRIGGER, _SHARE, _DRAWN = 3, 4, 5, 6
"""What random numbers are for; the local training uses 1 and 2."""
_EVALUATED = 1000
"""Test examples at a time."""


def run_cell(cell: Cell, dataset: Dataset, observe: Observe = lambda evaluation: None) -> CellResult:
    """Run all rounds; `observe` hears of every evaluation. PyTorch runs on one thread.

    Raises ImpossibleCell for a model that does not fit the data and a device that is not there,
    PartitionError.
    """
    with one_thread():
        return _run(Federation(cell, dataset), observe)


def _run(federation: Federation, observe: Observe) -> CellResult:
    cell, scores = federation.cell, _Scores(federation.cell)
    evaluations = [federation.evaluate(0)]
    observe(evaluations[0])
    excluded = skipped = 0
    for number in range(cell.rounds):
        applied = federation.round(number)
        excluded += cell.members - len(applied.included)
        skipped += applied.aggregate is None
        scores.add(applied)
        done = number + 1
        if done % cell.evaluate_every == 0 or done == cell.rounds:
            evaluations.append(federation.evaluate(done))
            observe(evaluations[-1])
    means = scores.means()
    return CellResult(
        cell.id, cell.settings(), tuple(evaluations), means, scores.areas(means), excluded, skipped
    )


class Federation:
    """Members with their data, the global model, and the rounds between them."""

    def __init__(self, cell: Cell, dataset: Dataset) -> None:
        require_device(cell)
        self.cell, self._dataset = cell, dataset
        self.network = initial_network(cell, dataset)
        """The network that `layout` describes; its own weights mean nothing after the start."""
        self.layout = layout_of(self.network)
        self.weights = initial_weights(self.network)
        self._honest = cell.members - cell.malicious
        data = member_data(cell, dataset)
        self._claims = [len(split.labels) for split in data]
        members = range(cell.members if _liars_train(cell) else self._honest)
        self._training = local_training(cell, dataset, [data[member] for member in members], members)
        self.exchange: Exchange = LatticeExchange(
            self.layout,
            cell.rule,
            cell.members,
            cell.bits,
            cell.exponent,
            cell.seed,
            scored=bool(cell.scores),
        )
        """What turns a round's updates into the next model: the nodes' arithmetic."""
        self.pretended: Floats
        """The models that liars say they trained, (malicious, d); the next round overwrites them."""
        self._sent: Floats = np.empty((cell.members, self.layout.size), np.float32)
        self._pretended: Floats = np.empty((cell.malicious, self.layout.size), np.float32)

    def updates(self, number: int) -> Floats:
        """What the members send in a round, float32 (members, d), the liars' last.

        The next call writes into the same array.
        """
        base, honest, sent = self.weights, self._honest, self._sent
        trainees = len(self._training.examples)
        self._training.move(base, number, sent[:trainees])
        if self.cell.attack.target is AttackTarget.UPDATES:
            defence = self.exchange.foreseen(self._claims, self.cell.malicious)
            lies = craft_lies(self.cell, sent[:honest], sent[honest:trainees], number, defence)
            # A node sends the difference of two models, so of a lie too only what a model can show.
            self.pretended = lying_models(base, lies, self._pretended)
            np.subtract(self.pretended, base, out=sent[honest:])
        return sent

    def round(self, number: int) -> Applied:
        """Train, lie, aggregate, move the model."""
        return self.conclude(self.updates(number), number)

    def conclude(self, updates: Floats, number: int) -> Applied:
        """Aggregate what the members sent, and move the model."""
        applied = self.exchange.apply(self.weights, updates, self._claims, number)
        self.weights = applied.weights
        return applied

    def evaluate(self, done: int) -> Evaluation:
        """Accuracy and loss of the present model on the test set, after `done` rounds."""
        accuracy, loss = measure(self.cell, self.network, self.layout, self.weights, self._dataset.test)
        return Evaluation(done, accuracy, loss, model_digest(self.weights))


def require_device(cell: Cell) -> None:
    """Raises ImpossibleCell when the cell's device is not there."""
    if cell.training.device == "cuda" and not torch.cuda.is_available():
        raise ImpossibleCell('training.device is "cuda", and PyTorch finds no such device; use "cpu"')


def layout_of(network: nn.Module) -> Layout:
    """The network's tensors, in the order of its parameters."""
    return Layout.of({name: p.detach().numpy() for name, p in network.named_parameters()})


def initial_weights(network: nn.Module) -> Floats:
    """The network's values, flat: float32 (d,)."""
    return np.concatenate([p.detach().numpy().reshape(-1) for p in network.parameters()])


def lying_models(base: Floats, lies: Floats, out: Floats) -> Floats:
    """The models that liars pretend to have trained, (k, d), within float32 where the lies are finite."""
    with np.errstate(over="ignore"):
        np.add(base, lies, out=out)
    if not has_finite_sum(out):
        limit = np.finfo(np.float32).max
        np.clip(out, -limit, limit, out=out, where=np.isfinite(lies))
    return out


def has_finite_sum(values: Floats) -> bool:
    """A quick look: if so, every value is finite."""
    return bool(torch.isfinite(torch.from_numpy(values).sum()))


def local_training(
    cell: Cell, dataset: Dataset, data: Sequence[Split], members: Sequence[int]
) -> LocalTraining:
    """The training of some members of a cell, whose examples are `data`."""
    return LocalTraining(
        initial_network(cell, dataset),
        cell.training,
        cell.rounds,
        data,
        members,
        cell.seed,
        vectorised=is_vectorised(cell),
        convolutional=find_model(cell.model).convolutional,
        device=cell.training.device,
    )


def model_digest(weights: Floats) -> str:
    """SHA-256 of the float32 values, little-endian, as hex."""
    return hashlib.sha256(weights.astype("<f4").tobytes()).hexdigest()


def initial_network(cell: Cell, dataset: Dataset) -> nn.Module:
    """The cell's model with its initial weights, a function of the seed. Raises ImpossibleCell."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.seed)
        return build_model(cell.model, dataset.train.features.shape[1:], dataset.classes)


def is_vectorised(cell: Cell) -> bool:
    """Whether members train all at once: convolutions on a CPU are faster one after the other."""
    if cell.training.engine != "auto":
        return cell.training.engine == "vectorised"
    return cell.training.device != "cpu" or not find_model(cell.model).convolutional


def member_data(cell: Cell, dataset: Dataset) -> list[Split]:
    """Each member's examples, falsified where the attack falsifies the liars'. Raises PartitionError."""
    data = [dataset.train.take(share) for share in member_shares(cell, dataset)]
    for member in range(cell.members - cell.malicious, cell.members):
        data[member] = _falsified(cell, dataset, _reduced(cell, data[member], member), member)
    return data


def member_shares(cell: Cell, dataset: Dataset) -> list[Indices]:
    """The indices of each member's training examples. Raises PartitionError."""
    labels, among = dataset.train.labels, cell.sharers
    parameter = None if cell.partition.parameter is None else cell.partition.parameter[1]
    shares = divide(cell.partition.kind, labels, among, cell.seed, parameter)
    for member in range(among, cell.members):
        random = np.random.default_rng([_DRAWN, cell.seed, member])
        shares.append(np.sort(random.permutation(len(labels))[: len(labels) // among]))
    return shares


def _reduced(cell: Cell, split: Split, member: int) -> Split:
    if cell.malicious_data == 1:
        return split
    kept = max(1, round(cell.malicious_data * len(split.labels)))
    random = np.random.default_rng([_SHARE, cell.seed, member])
    return split.take(np.sort(random.permutation(len(split.labels))[:kept]))


def _falsified(cell: Cell, dataset: Dataset, split: Split, member: int) -> Split:
    if cell.attack.target is AttackTarget.LABELS:
        return replace(split, labels=flip_labels(split.labels, dataset.classes))
    if cell.attack.target is AttackTarget.EXAMPLES:
        return stamped(cell, split, dataset.classes, member)
    return split


def stamped(cell: Cell, split: Split, classes: int, member: int) -> Split:
    """A liar's examples with the trigger of the cell's backdoor. Raises AttackInvalid."""
    chosen = resolve_parameters(cell.attack.name, dict(cell.attack.params))
    features, labels = stamp_trigger(
        split.features,
        split.labels,
        classes,
        np.random.default_rng([_TRIGGER, cell.seed, member]),
        fraction=chosen["fraction"],
        target=int(chosen["target"]),
        size=int(chosen["size"]),
    )
    return Split(features, labels)


def _liars_train(cell: Cell) -> bool:
    """Whether anybody looks at what the liars would have sent if they were honest."""
    if cell.attack.target is not AttackTarget.UPDATES:
        return True
    return cell.attack.knowledge is Knowledge.BLIND and cell.attack.needs_knowledge


def craft_lies(cell: Cell, honest: Floats, own: Floats, number: int, defence: Defence) -> Floats:
    """What the liars send in a round: (malicious, d). own: their honest updates, empty unless they are blind.
    defence: what optimised attacks try their factor on."""
    attack = cell.attack
    blind = attack.knowledge is Knowledge.BLIND and attack.needs_knowledge
    known = own if blind else honest
    if not has_finite_sum(known):
        known = known[np.isfinite(known).all(axis=1)]
    if len(known) < ATTACKS[attack.name].fewest:
        # Training has diverged: whoever has no update to send is no help to liars either.
        return np.zeros((cell.malicious, honest.shape[1]), np.float32)
    return craft_updates(
        attack.name,
        known,
        cell.malicious,
        np.random.default_rng([_LIES, cell.seed, number]),
        dict(attack.params),
        defence=defence,
        knowledge=Knowledge.BLIND if blind else Knowledge.OMNISCIENT,
        members=cell.members,
    )


def measure(
    cell: Cell, network: nn.Module, layout: Layout, weights: Floats, test: Split
) -> tuple[float, float]:
    """Accuracy (a fraction) and mean cross-entropy (nats) on a test set of a cell's model `weights` (d,)."""
    device, convolutional = cell.training.device, find_model(cell.model).convolutional
    tensors = {name: torch.from_numpy(array).to(device) for name, array in layout.unflatten(weights).items()}
    network.to(device).eval()
    correct, loss, count = 0, 0.0, len(test.labels)
    with torch.inference_mode():
        for start in range(0, count, _EVALUATED):
            features = torch.from_numpy(test.features[start : start + _EVALUATED]).to(device)
            if convolutional and features.dim() == 4:
                features = channels_last(features)
            labels = torch.from_numpy(test.labels[start : start + _EVALUATED]).to(device)
            output = torch.func.functional_call(network, tensors, (features,))
            loss += float(nn.functional.cross_entropy(output, labels, reduction="sum"))
            correct += int((output.argmax(1) == labels).sum())
    return correct / count, loss / count


class _Scores:
    """Sums every member's scores over the rounds that included it."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._sums = {name: np.zeros(cell.members) for name in cell.scores}
        self._rounds = np.zeros(cell.members)

    def add(self, applied: Applied) -> None:
        if not isinstance(applied.aggregate, Aggregate):
            return
        rows = list(applied.included)
        self._rounds[rows] += 1
        for name, sums in self._sums.items():
            sums[rows] += np.array(SCORES[name](applied.aggregate)) / FULL_SCORE

    def means(self) -> dict[str, tuple[float, ...]]:
        """A member that no round included has 0."""
        rounds = np.maximum(self._rounds, 1)
        return {name: tuple((sums / rounds).tolist()) for name, sums in self._sums.items()}

    def areas(self, means: dict[str, tuple[float, ...]]) -> dict[str, float]:
        """Area under the ROC curve: how often an honest member has more than a malicious one, ties a half."""
        split = self._cell.members - self._cell.malicious
        if self._cell.malicious == 0 or (self._cell.attack.name == HONEST and self._cell.malicious_data == 1):
            return {}
        return {name: area_under_curve(values[:split], values[split:]) for name, values in means.items()}


def area_under_curve(higher: Sequence[float], lower: Sequence[float]) -> float:
    """The share of pairs in which the first has more, ties a half (Mann, Whitney 1947): 0.5 is chance."""
    above, below = np.array(higher)[:, None], np.array(lower)
    return float(((above > below) + 0.5 * (above == below)).mean())
