"""A cell: one federation in memory, described completely. Everything its result is a function of is here.

Values only; reading them from a file and running them live elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Final

from folkmoot.aggregation import ATTACKS, AttackTarget, Knowledge, RuleSpec, minimum_updates
from folkmoot.aggregation.attacks import resolve_parameters
from folkmoot.aggregation.plans import MAX_UPDATES
from folkmoot.aggregation.rules import written_rule
from folkmoot.experiments.results import Setting
from folkmoot.node.task_file import DEFAULT_EXPONENT

__all__ = ["HONEST", "AttackChoice", "Cell", "ImpossibleCell", "ModelChoice", "PartitionChoice", "Training"]

HONEST: Final = "none"
"""The attack of members that could lie and do not."""

EVALUATE_EVERY: Final = 10
OPTIMIZERS: Final = ("sgd", "adam")
SCHEDULES: Final = ("constant", "cosine", "step")
BUILT_IN_MODELS: Final = ("linear", "mlp", "small-cnn", "lenet", "cnn")
"""Of `models.MODELS`; their names are known without PyTorch, which takes a second to load."""


class ImpossibleCell(ValueError):
    """Settings that contradict each other; the message says which and what would be allowed."""


@dataclass(frozen=True, slots=True)
class PartitionChoice:
    """How the training examples are divided.

    among: "members", so that liars hold examples that no honest member has; or "honest" members, who then
    have all, while each liar gets as many as they have on average, drawn from all. Raises ImpossibleCell.
    """

    kind: str
    parameter: tuple[str, float] | None = None
    among: str = "members"

    def __post_init__(self) -> None:
        if self.among not in ("members", "honest"):
            raise ImpossibleCell(f"partition.among is {self.among!r}, expected members or honest")

    @property
    def label(self) -> str:
        """Such as "dirichlet alpha=0.1"."""
        parts = [self.kind]
        if self.parameter is not None:
            parts.append(f"{self.parameter[0]}={_short(self.parameter[1])}")
        if self.among != "members":
            parts.append(f"among={self.among}")
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model by its name in `models.MODELS` or as "package.module:factory", with its options."""

    name: str
    options: tuple[tuple[str, Setting], ...] = ()

    @property
    def label(self) -> str:
        """Such as "mlp hidden=64"."""
        return " ".join([self.name, *(f"{name}={value}" for name, value in self.options)])


@dataclass(frozen=True, slots=True)
class Training:
    """What every member does with the model in one round.

    steps or epochs: batches of `batch` examples, of its own data in a new random order each pass; a round of
    `epochs` has as many batches as its examples fill, rounded up. optimizer: "sgd" moves along the momentum
    m <- momentum m + (1 - momentum) gradient, which the member keeps from round to round (Karimireddy, He,
    Jaggi 2021, "Learning from History"); "adam" is Kingma, Ba 2015 with the state kept likewise and
    beta1 = momentum. schedule: of the learning rate over the rounds: "constant", "cosine" to 0, or "step",
    which divides it by 10 after each third. Raises ImpossibleCell.
    """

    lr: float
    batch: int
    steps: int = 0
    epochs: float = 0.0
    optimizer: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "constant"
    engine: str = "auto"
    """"vectorised": all members at once (torch.func.vmap); "loop": one after the other; "auto": what is
    faster for the model. Their gradients differ in the last bits, with bfloat16 by some per cent."""
    precision: str = "float32"
    """"bfloat16": the network runs on weights and examples rounded to it; weights and loss stay float32."""
    device: str = "cpu"
    """Where members train and models are measured: "cpu" or "cuda". The rounds' arithmetic stays the same."""

    def __post_init__(self) -> None:
        if (self.steps > 0) == (self.epochs > 0):
            raise ImpossibleCell("[training] needs either steps or epochs, more than 0")
        for name, value, least in (
            ("steps", self.steps, 0),
            ("epochs", self.epochs, 0),
            ("batch", self.batch, 1),
            ("weight_decay", self.weight_decay, 0),
        ):
            if not least <= value < 2**31:
                raise ImpossibleCell(f"training.{name} is {value}, expected {least} to less than 2^31")
        if not 0 < self.lr < 1e6:
            raise ImpossibleCell(f"training.lr is {self.lr}, expected more than 0 and less than 1e6")
        if not 0 <= self.momentum < 1:
            raise ImpossibleCell(f"training.momentum is {self.momentum}, expected 0 to less than 1")
        for name, choice, known in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("engine", self.engine, ("auto", "vectorised", "loop")),
            ("precision", self.precision, ("float32", "bfloat16")),
            ("device", self.device, ("cpu", "cuda")),
        ):
            if choice not in known:
                raise ImpossibleCell(f"training.{name} is {choice!r}, expected one of {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class AttackChoice:
    """An attack of aggregation.ATTACKS, or "none". Raises ImpossibleCell and AttackInvalid."""

    name: str = HONEST
    params: tuple[tuple[str, float | str], ...] = ()
    knowledge: Knowledge = Knowledge.OMNISCIENT

    def __post_init__(self) -> None:
        if self.name == HONEST:
            if self.params:
                raise ImpossibleCell('attack "none" has no parameters')
            return
        resolve_parameters(self.name, dict(self.params))
        if self.knowledge not in ATTACKS[self.name].knowledge:
            known = ", ".join(k.value for k in ATTACKS[self.name].knowledge)
            raise ImpossibleCell(f"attack {self.name} needs knowledge = {known}")

    @property
    def target(self) -> AttackTarget | None:
        """What it falsifies, None for honest members."""
        return None if self.name == HONEST else ATTACKS[self.name].target

    @property
    def label(self) -> str:
        """Such as "sign-flip strength=10"."""
        return " ".join([self.name, *(f"{name}={_short(value)}" for name, value in self.params)])

    @property
    def needs_knowledge(self) -> bool:
        """Whether it matters what the liars see: not for falsified data, nor for what asks for nothing."""
        return self.target is AttackTarget.UPDATES and self.name not in BLUNT


BLUNT: Final = frozenset({"gaussian", "infinity", "nan", "zero"})
"""Attacks on updates that look at no update."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One federation in memory. The last `malicious` of the `members` lie.

    f is what the rule is told; evaluations happen every `evaluate_every` rounds and after the last. bits is
    the lattice's. Raises ImpossibleCell when the rule is not defined for n and f, or the liars are too few or
    too many.
    """

    data: str
    partition: PartitionChoice
    model: ModelChoice
    training: Training
    rule: RuleSpec
    attack: AttackChoice
    members: int
    malicious: int
    rounds: int
    seed: int
    evaluate_every: int = EVALUATE_EVERY
    bits: int = 16
    exponent: int = DEFAULT_EXPONENT
    """Of every tensor of the lattice in round 0."""
    malicious_data: float = 1.0
    """The fraction of its share that each liar keeps."""
    scores: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.members <= MAX_UPDATES:
            raise ImpossibleCell(f"members is {self.members}, expected 1 to {MAX_UPDATES}")
        if not 0 <= 2 * self.malicious < self.members:
            raise ImpossibleCell(
                f"malicious is {self.malicious} of {self.members} members, expected less than half"
            )
        if self.malicious == 0 and self.attack.name != HONEST:
            raise ImpossibleCell(f'attack {self.attack.name} with malicious = 0; use attack "none"')
        if self.rule.needs_reference:
            raise ImpossibleCell(f"{self.rule.name} with history = 1 is not used in rounds")
        needed = minimum_updates(self.rule)
        if self.members < needed:
            raise ImpossibleCell(
                f"{rule_label(self.rule)} with f = {self.rule.f} needs {needed} members, found {self.members}"
            )
        if self.rule.parameters().get("pivot", 0) >= self.members:
            raise ImpossibleCell(f"rule.params.pivot is beyond the members, who are 0 to {self.members - 1}")
        if not 0 < self.malicious_data <= 1:
            raise ImpossibleCell(f"malicious_data is {self.malicious_data}, expected more than 0 to 1")
        for name, value in (("rounds", self.rounds), ("evaluate_every", self.evaluate_every)):
            if not 1 <= value < 2**31:
                raise ImpossibleCell(f"{name} is {value}, expected 1 to less than 2^31")
        self._check_known_updates()

    @property
    def sharers(self) -> int:
        """How many members divide the examples among them."""
        return self.members if self.partition.among == "members" else self.members - self.malicious

    def _check_known_updates(self) -> None:
        if self.attack.target is not AttackTarget.UPDATES:
            return
        blind = self.attack.knowledge is Knowledge.BLIND
        known = self.malicious if blind else self.members - self.malicious
        fewest = ATTACKS[self.attack.name].fewest
        if known < fewest:
            raise ImpossibleCell(
                f"attack {self.attack.name} needs to know {fewest} updates; "
                f"{self.attack.knowledge.value} liars know {known}"
            )
        victim = int(resolve_parameters(self.attack.name, dict(self.attack.params)).get("victim", 0))
        if victim >= known:
            raise ImpossibleCell(f"attack.params.victim is {victim}, expected 0 to {known - 1}")

    def settings(self) -> dict[str, Setting]:
        """Flat names and values, complete: two cells are the same when these are."""
        training = {
            f"training.{name}": value
            for name, value in (
                ("lr", self.training.lr),
                ("batch", self.training.batch),
                ("steps", self.training.steps),
                ("epochs", self.training.epochs),
                ("optimizer", self.training.optimizer),
                ("momentum", self.training.momentum),
                ("weight_decay", self.training.weight_decay),
                ("schedule", self.training.schedule),
                ("engine", self.training.engine),
                ("precision", self.training.precision),
                ("device", self.training.device),
            )
        }
        needs_knowledge = self.attack.needs_knowledge
        return {
            "data": self.data,
            "partition": self.partition.label,
            "model": self.model.label,
            **training,
            "rule": rule_label(self.rule),
            "attack": self.attack.label,
            "attack.knowledge": self.attack.knowledge.value if needs_knowledge else "none",
            "federation.members": self.members,
            "federation.malicious": self.malicious,
            "federation.malicious_data": self.malicious_data,
            "federation.f": self.rule.f,
            "federation.rounds": self.rounds,
            "federation.evaluate_every": self.evaluate_every,
            "lattice.bits": self.bits,
            "lattice.exponent": self.exponent,
            "scores": " ".join(self.scores),
            "seed": self.seed,
        }

    @property
    def id(self) -> str:
        """First 16 hex digits of the SHA-256 of the settings."""
        text = json.dumps(self.settings(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(b"folkmoot/cell/1" + text.encode()).hexdigest()[:16]


def rule_label(rule: RuleSpec) -> str:
    """Pre-aggregators and rule without f, such as "nnm + krum power=1"; lengths in the model's unit."""
    params, pre = written_rule(rule)
    last = " ".join([rule.name, *(f"{name}={value}" for name, value in params.items())])
    return " + ".join([*(entry.replace(":", " ").replace(",", " ") for entry in pre), last])


def _short(value: float | str) -> str:
    """A number in its shortest form that is still exact: two values never look the same."""
    if isinstance(value, str):
        return value
    rounded = f"{value:g}"
    return rounded if float(rounded) == value else repr(value)
