"""Who runs: ours by backend, both flavours of ByzFL, Flower; each as a call without arguments.

A contender that cannot run says why in `obstacle`; nobody is left out in silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from contests import MAX_SUBSETS, ROUND_SEED, Case, Contest
from resources import available_bytes

from folkmoot.aggregation import aggregate_values

TORCH, NUMPY, FLOWER = "ByzFL PyTorch", "ByzFL NumPy", "Flower"
PEERS = (TORCH, NUMPY, FLOWER)
NO_SUCH_RULE = "no such rule"
_SPARE = 0.9
"""The share of the available memory that a peer may take."""


@dataclass(frozen=True, slots=True)
class Contender:
    """`prepare` builds fresh state, untimed, and returns the call to time."""

    name: str
    prepare: Callable[[], Callable[[], Any]]
    obstacle: str | None = None

    @property
    def ours(self) -> bool:
        return self.name not in PEERS


def load_peers() -> dict[str, Any]:
    """The peers' modules by contender; those that are not installed are left out."""
    try:
        import peers
    except ImportError:
        return {}
    found: dict[str, Any] = {}
    for names, load in (((TORCH, NUMPY), peers.byzfl), ((FLOWER,), peers.flower)):
        try:
            module = load()
        except ImportError:
            continue
        if module is not None:
            found.update(dict.fromkeys(names, module))
    return found


def our_name(backend: str) -> str:
    return f"ours, {backend}"


def field(
    contest: Contest, case: Case, backends: Sequence[str], threads: int, peers: Mapping[str, Any]
) -> list[Contender]:
    """Every contender of a contest, in the order in which they take turns."""
    ours = [Contender(our_name(backend), _ours(contest, case, backend, threads)) for backend in backends]
    return [*ours, *(_peer(name, contest, case, peers.get(name)) for name in PEERS)]


def _ours(contest: Contest, case: Case, backend: str, threads: int) -> Callable[[], Callable[[], Any]]:
    def prepare() -> Callable[[], Any]:
        rule = contest.spec(case.facts)
        weights = case.facts.weights if contest.weighted else None

        def call() -> Any:
            return aggregate_values(
                case.integers, case.layout, case.lattice, rule,
                weights=weights, seed=ROUND_SEED, backend=backend, threads=threads,
            )  # fmt: skip

        return call

    return prepare


def _peer(name: str, contest: Contest, case: Case, module: Any) -> Contender:
    preparations = {TORCH: _torch, NUMPY: _numpy, FLOWER: _flower}
    obstacle = obstacle_for(name, contest, case.facts.n, case.layout.size)
    if obstacle is None and module is None:
        obstacle = "not installed"
    return Contender(name, lambda: preparations[name](contest, case, module), obstacle)


def obstacle_for(name: str, contest: Contest, n: int, values: int) -> str | None:
    """Why a peer cannot run on n updates of `values` values: no such rule, subsets, or memory."""
    if (contest.flower if name == FLOWER else contest.byzfl) is None:
        return NO_SUCH_RULE
    f = n // 5
    if contest.subsets and math.comb(n, f) > MAX_SUBSETS:
        return f"not feasible: {math.comb(n, f):.0e} subsets"
    copies = contest.copies(n, f) if name != FLOWER else 5
    needed, free = copies * n * values * 4, available_bytes()
    if needed > _SPARE * free:
        return f"not feasible: needs about {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"
    return None


def _torch(contest: Contest, case: Case, module: Any) -> Callable[[], Any]:
    import torch

    assert contest.byzfl is not None
    rule = contest.byzfl(module, case.facts)
    vectors = torch.from_numpy(case.floats.copy() if contest.overwrites else case.floats)
    return lambda: rule(vectors)  # type: ignore[arg-type]


def _numpy(contest: Contest, case: Case, module: Any) -> Callable[[], Any]:
    assert contest.byzfl is not None
    rule = contest.byzfl(module, case.facts)
    vectors = case.floats.copy() if contest.overwrites else case.floats
    return lambda: rule(vectors)


def _flower(contest: Contest, case: Case, module: Any) -> Callable[[], Any]:
    assert contest.flower is not None
    call, facts = contest.flower, case.facts
    results = [([row], weight) for row, weight in zip(case.floats, facts.weights, strict=True)]
    return lambda: call(module, facts, results)[0]


def difference(ours: Any, theirs: Any) -> float:
    """Euclidean length of ours - theirs over that of theirs."""
    a, b = np.asarray(ours, np.float64).reshape(-1), np.asarray(theirs, np.float64).reshape(-1)
    length = float(np.linalg.norm(b))
    return float(np.linalg.norm(a - b)) / length if length else float(np.linalg.norm(a))
