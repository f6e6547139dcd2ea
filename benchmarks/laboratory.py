"""The laboratory beside ByzFL's federation: the same experiment in both, accuracy by accuracy, step by step.

    python benchmarks/laboratory.py curves --json curves.json --picture curves.png
    python benchmarks/laboratory.py speed --n 10 20 50 --model lenet cnn --json speed.json
    python benchmarks/laboratory.py curves --steps 20 --rules krum         # minutes less

Both get the same data, network, initial weights, batches, attack and rule: Fashion-MNIST, the MNIST network
of ByzFL ("lenet" here) or that of Karimireddy et al. 2022 ("cnn", as its authors wrote it), 32 examples a
step, momentum 0.9 at the member. ByzFL's Client, Server and
ByzantineClient run as its documentation shows; its data loaders get tensors, with no transform to run.
Accuracy is measured by one function for both and is not timed. "ByzFL disturbed" is ByzFL again, from
initial weights that differ by a millionth: where it leaves ByzFL as far as ours does, training is chaotic,
and no two implementations could agree. `speed` takes turns, step by step, in one process with --threads
threads for each; it also runs ours with training.precision = "bfloat16".
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import peers
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from folkmoot.aggregation import RuleSpec, rule_spec
from folkmoot.aggregation.attacks import little_is_enough_z
from folkmoot.experiments.cells import AttackChoice, Cell, ModelChoice, PartitionChoice, Training
from folkmoot.experiments.federation import (
    Federation,
    initial_network,
    initial_weights,
    measure,
    member_data,
)
from folkmoot.experiments.training import Batches
from folkmoot.node.datasets import Dataset, Split, load_dataset

LR, BATCH, MOMENTUM = 0.02, 32, 0.9
SMOOTHING = 0.01
"""Of the geometric median, for gradients; for our updates it is LR times that."""
STEPS_OF_RFA = 8
EVALUATIONS = 10
DISTURBANCE = 1e-6
EXPONENT = -22
"""Of the first round's lattice: the first updates are a tenth of a gradient, times the learning rate."""


class PublishedCnn(torch.nn.Module):
    """`cnn` with PyTorch's dropout."""

    def __init__(self) -> None:
        super().__init__()
        nn = torch.nn
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.MaxPool2d(2), nn.Dropout2d(0.25),
            nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10),
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logarithms of the classes' probabilities (batch, 10)."""
        return torch.nn.functional.log_softmax(self.layers(images), dim=1)


THEIR_MODELS = {"lenet": "cnn_mnist", "cnn": "PublishedCnn"}
"""What ByzFL is asked for, by our name."""

RULES: dict[
    str, tuple[Callable[[int], RuleSpec], Callable[[int], tuple[dict[str, Any], list[dict[str, Any]]]]]
] = {
    "trimmed-mean": (
        lambda f: rule_spec("trimmed-mean", f),
        lambda f: ({"name": "TrMean", "parameters": {"f": f}}, []),
    ),
    "krum": (
        lambda f: rule_spec("krum", f, {"excluded": 1}),
        lambda f: ({"name": "Krum", "parameters": {"f": f}}, []),
    ),
    "geometric-median": (
        lambda f: rule_spec("rfa", f, {"nu": f"{SMOOTHING * LR:f}", "steps": STEPS_OF_RFA}),
        lambda f: ({"name": "GeometricMedian", "parameters": {"nu": SMOOTHING, "T": STEPS_OF_RFA}}, []),
    ),
    "nnm+trimmed-mean": (
        lambda f: rule_spec("trimmed-mean", f, {}, ["nnm"]),
        lambda f: ({"name": "TrMean", "parameters": {"f": f}}, [{"name": "NNM", "parameters": {"f": f}}]),
    ),
}
"""Each rule by our specification and by ByzFL's, for f liars."""


def _little(n: int, f: int) -> dict[str, Any]:
    # ByzFL adds tau deviations with the divisor m - 1, ours subtracts z with the divisor m.
    return {"tau": -little_is_enough_z(n, f) * math.sqrt((n - f - 1) / (n - f))}


ATTACKS: dict[str, tuple[AttackChoice, str, Callable[[int, int], dict[str, Any]]]] = {
    "sign-flip": (AttackChoice("sign-flip"), "SignFlipping", lambda n, f: {}),
    "little-is-enough": (AttackChoice("little-is-enough"), "ALittleIsEnough", _little),
    "inner-product": (
        AttackChoice("inner-product", (("epsilon", 0.5),)),
        "InnerProductManipulation",
        lambda n, f: {"tau": 0.5},
    ),
}
"""Each attack by our choice and by ByzFL's name and parameters, for f of n members."""


def make_cell(rule: str, attack: str, n: int, steps: int, seed: int, model: str = "lenet") -> Cell:
    """The experiment as ours."""
    f = n // 5
    return Cell(
        data="fashion-mnist",
        partition=PartitionChoice("dirichlet", ("alpha", 1.0)),
        model=ModelChoice(model),
        training=Training(lr=LR, batch=BATCH, steps=1, momentum=MOMENTUM),
        rule=RULES[rule][0](f),
        attack=ATTACKS[attack][0],
        members=n,
        malicious=f,
        rounds=steps,
        seed=seed,
        exponent=EXPONENT,
    )


@dataclass(eq=False)
class Theirs:
    """The same experiment run by ByzFL's classes."""

    cell: Cell
    rule: str
    attack: str
    dataset: Dataset
    disturbance: float = 0.0
    """Of the initial weights, relative."""

    def __post_init__(self) -> None:
        self.model = THEIR_MODELS[self.cell.model.name]
        module, cell, n, f = peers.byzfl_federation(), self.cell, self.cell.members, self.cell.malicious
        module.models.PublishedCnn = PublishedCnn
        aggregator, pre = RULES[self.rule][1](f)
        name, parameters = ATTACKS[self.attack][1], ATTACKS[self.attack][2](n, f)
        data = member_data(cell, self.dataset)
        self.clients = [self._client(module, data[i], i) for i in range(n - f)]
        self.liars = module.ByzantineClient({"name": name, "f": f, "parameters": parameters})
        self.server = module.Server(
            {
                "device": "cpu", "model_name": self.model, "test_loader": _loader(data[0], [[0]]),
                "optimizer_name": "SGD", "learning_rate": LR, "weight_decay": 0.0, "milestones": [],
                "learning_rate_decay": 1.0, "aggregator_info": aggregator, "pre_agg_list": pre,
            }
        )  # fmt: skip
        initial = initial_weights(initial_network(cell, self.dataset))
        noise = np.random.default_rng(cell.seed).standard_normal(initial.size)
        initial = initial * (1 + self.disturbance * noise)
        self.server.set_parameters(torch.from_numpy(initial.astype(np.float32)))
        self._share()

    def _client(self, module: Any, split: Split, index: int) -> Any:
        batches = _Order(split, self.cell.seed, index, self.cell.rounds)
        return module.Client(
            {
                "model_name": self.model, "device": "cpu", "loss_name": "NLLLoss", "LabelFlipping": False,
                "nb_labels": 10, "momentum": MOMENTUM, "training_dataloader": _loader(split, batches),
                "store_per_client_metrics": False, "optimizer_name": None,
            }
        )  # fmt: skip

    def step(self) -> None:
        """One step as ByzFL's documentation shows it."""
        for client in self.clients:
            client.compute_gradients()
        honest = [client.get_flat_gradients_with_momentum() for client in self.clients]
        self.server.update_model_with_gradients([*honest, *self.liars.apply_attack(honest)])
        self._share()

    def _share(self) -> None:
        for client in self.clients:
            client.set_model_state(self.server.get_dict_parameters())

    @property
    def weights(self) -> Any:
        """The global model, flat."""
        return self.server.get_flat_parameters().numpy()


class _Order:
    """Our batches as a sampler of batches."""

    def __init__(self, split: Split, seed: int, index: int, rounds: int) -> None:
        self._batches, self._rounds = Batches(len(split.labels), seed, index), rounds

    def __len__(self) -> int:
        return self._rounds

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(self._rounds):
            yield self._batches.take(number * BATCH, BATCH).tolist()


def _loader(split: Split, batches: Any) -> Any:
    data = torch.utils.data.TensorDataset(torch.from_numpy(split.features), torch.from_numpy(split.labels))
    return torch.utils.data.DataLoader(data, batch_sampler=batches)


def curves(options: argparse.Namespace, dataset: Dataset) -> list[dict[str, Any]]:
    """Accuracy of both after every tenth of the steps, for each rule and attack."""
    test = Split(dataset.test.features[: options.test], dataset.test.labels[: options.test])
    found = []
    contests = [(rule, attack) for rule in options.rules for attack in options.attacks]
    for rule, attack in track(contests, "curves", console=Console(stderr=True)):
        cell = make_cell(rule, attack, options.n[0], options.steps, options.seed)
        ours, theirs = Federation(cell, dataset), Theirs(cell, rule, attack, dataset)
        control = Theirs(cell, rule, attack, dataset, DISTURBANCE)
        network, points = ours.network, []
        for number in range(options.steps):
            ours.round(number)
            theirs.step()
            control.step()
            if (number + 1) % max(1, options.steps // EVALUATIONS) == 0:
                point: dict[str, float] = {"step": number + 1}
                for name, one in (("ours", ours), ("byzfl", theirs), ("control", control)):
                    point[name] = measure(cell, network, ours.layout, one.weights, test)[0]
                points.append(point)
        gaps = {name: max(abs(p[name] - p["byzfl"]) for p in points) for name in ("ours", "control")}
        found.append({"rule": rule, "attack": attack, "points": points, "largest_gap": gaps})
    return found


def speed(options: argparse.Namespace, dataset: Dataset) -> list[dict[str, Any]]:
    """Median seconds of a step in both, taking turns."""
    found = []
    contests = [(model, n, rule) for model in options.model for n in options.n for rule in options.rules]
    for model, n, rule in track(contests, "speed", console=Console(stderr=True)):
        attack = options.attacks[0]
        cell = make_cell(rule, attack, n, options.repeat + 1, options.seed, model)
        narrow = dataclasses.replace(cell, training=dataclasses.replace(cell.training, precision="bfloat16"))
        ours, narrower = Federation(cell, dataset), Federation(narrow, dataset)
        theirs = Theirs(cell, rule, attack, dataset)
        seconds: dict[str, list[float]] = {"ours": [], "bfloat16": [], "byzfl": []}
        for number in range(options.repeat + 1):
            for name, step in (
                ("ours", partial(ours.round, number)),
                ("bfloat16", partial(narrower.round, number)),
                ("byzfl", theirs.step),
            ):
                began = time.perf_counter()
                step()
                if number:
                    seconds[name].append(time.perf_counter() - began)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        ratios = {f"{name}_ratio": medians["byzfl"] / medians[name] for name in ("ours", "bfloat16")}
        found.append({"model": model, "n": n, "rule": rule, "attack": attack, **medians, **ratios})
    return found


def draw(found: Sequence[dict[str, Any]], file: Path) -> None:
    """One panel for each rule and attack, both curves in it."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rules = list(dict.fromkeys(entry["rule"] for entry in found))
    attacks = list(dict.fromkeys(entry["attack"] for entry in found))
    figure, axes = pyplot.subplots(
        len(rules), len(attacks), figsize=(3.2 * len(attacks), 2.4 * len(rules)), sharex=True, sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for entry in found:
        axis = axes[rules.index(entry["rule"])][attacks.index(entry["attack"])]
        steps = [point["step"] for point in entry["points"]]
        for name, style, colour in (
            ("byzfl", "-", "#E69F00"), ("control", ":", "#999999"), ("ours", "--", "#0072B2")
        ):  # fmt: skip
            values = [100 * point[name] for point in entry["points"]]
            label = {"byzfl": "ByzFL", "control": "ByzFL disturbed", "ours": "Folkmoot"}[name]
            axis.plot(steps, values, style, color=colour, label=label, linewidth=2)
        axis.set_title(f"{entry['rule']}, {entry['attack']}", fontsize=8)
        axis.grid(alpha=0.3)
    for row in axes:
        row[0].set_ylabel("test accuracy (%)", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("steps", fontsize=8)
    axes[0][0].legend(fontsize=8)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("what", choices=("curves", "speed"))
    add("--n", type=int, nargs="+", default=None, help="members, a fifth of them liars (10; speed: 10 20 50)")
    add("--steps", type=int, default=200)
    add("--model", nargs="+", choices=tuple(THEIR_MODELS), default=["lenet"], help="for speed")
    add("--rules", nargs="+", choices=tuple(RULES), default=list(RULES))
    add("--attacks", nargs="+", choices=tuple(ATTACKS), default=list(ATTACKS))
    add("--repeat", type=int, default=7, help="timed steps")
    add("--test", type=int, default=10_000, help="test examples for the curves")
    add("--threads", type=int, default=2)
    add("--seed", type=int, default=1)
    add("--json", type=Path, metavar="FILE")
    add("--picture", type=Path, metavar="FILE.png", help="of the curves")
    options = parser.parse_args()
    if options.what == "curves" and options.model != ["lenet"]:
        parser.error("curves are of lenet: the two would draw different dropout masks for cnn")
    options.n = options.n or ([10] if options.what == "curves" else [10, 20, 50])
    return options


def main() -> None:
    """Run one of the two comparisons and print its table."""
    options = _options()
    torch.set_num_threads(options.threads)
    dataset = load_dataset("fashion-mnist")
    found = (curves if options.what == "curves" else speed)(options, dataset)
    columns: tuple[str, ...] = ("rule", "attack", "largest gap", "of ByzFL disturbed", "ours", "byzfl")
    if options.what == "speed":
        columns = ("model", "n", "rule", "byzfl ms", "ours ms", "ratio", "bfloat16 ms", "ratio")
    table = Table(*columns)
    for entry in found:
        if options.what == "curves":
            last = entry["points"][-1]
            gaps = entry["largest_gap"]
            row = (entry["rule"], entry["attack"], gaps["ours"], gaps["control"], last["ours"], last["byzfl"])
        else:
            row = (
                entry["model"],
                entry["n"],
                entry["rule"],
                1000 * entry["byzfl"],
                1000 * entry["ours"],
                entry["ours_ratio"],
                1000 * entry["bfloat16"],
                entry["bfloat16_ratio"],
            )
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row))
    console = Console(highlight=False)
    console.print(table)
    if options.what == "speed":
        for name in ("ours", "bfloat16"):
            geometric = math.exp(statistics.fmean(math.log(entry[f"{name}_ratio"]) for entry in found))
            console.print(
                f"geometric mean of the ratios, {name}: {geometric:.2f}; threads: {options.threads}"
            )
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "found": found}, indent=2) + "\n")
    if options.picture and options.what == "curves":
        draw(found, options.picture)


if __name__ == "__main__":
    main()
