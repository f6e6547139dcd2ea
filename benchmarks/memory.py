"""Peak memory beyond the input, of one rule by one contender in a process of its own.

    python benchmarks/memory.py '{"label": "median", "contender": "Flower", "n": 10, "values": 100000, ...}'

The benchmark starts it once for each pair; it prints one line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from contenders import Contender, field, load_peers
from contests import CONTESTS, Case, Contest, make_case, repeated
from resources import extra_bytes, limit_libraries

_WARM_UP_VALUES = 4096


@dataclass(frozen=True, slots=True)
class Question:
    """Which contender, on how much; `backend` and `threads` for ours."""

    label: str
    contender: str
    n: int
    values: int
    bits: int
    threads: int
    backend: str
    seed: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Bytes beyond the input at the peak (the result included), and the input's own bytes."""

    label: str
    contender: str
    n: int
    values: int
    extra: int | None
    input: int
    obstacle: str | None

    @property
    def share(self) -> float | None:
        return None if self.extra is None else self.extra / self.input


def measure_memory(
    contests: Sequence[Contest], names: Sequence[str], ask: Callable[[str, str], Question]
) -> list[Answer]:
    """One child process after another. `ask` makes the question for a label and a contender's name."""
    return [_in_child(ask(contest.label, name)) for contest in contests for name in names]


def _in_child(question: Question) -> Answer:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), json.dumps(asdict(question))],
        capture_output=True, text=True, timeout=3600, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return Answer(**json.loads(done.stdout.splitlines()[-1]))
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    reason = f"failed with {done.returncode}: {last}"
    return Answer(question.label, question.contender, question.n, question.values, None, 1, reason)


def answer(question: Question) -> Answer:
    """Warm up on a small model, build the input, and run once under the kernel's peak mark."""
    limit_libraries(question.threads)
    contest = CONTESTS[question.label]
    small = make_case(question.n, _WARM_UP_VALUES, question.bits, question.seed, tensors=1)
    peers = load_peers()

    def find(case: Case) -> Contender:
        everybody = field(contest, case, [question.backend], question.threads, peers)
        return next(contender for contender in everybody if contender.name == question.contender)

    ours = find(small).ours
    width = question.bits // 8 if ours else 4
    size = question.n * question.values * width

    def reply(extra: int | None, obstacle: str | None) -> Answer:
        return Answer(question.label, question.contender, question.n, question.values, extra, size, obstacle)

    if find(small).obstacle is not None:
        return reply(None, find(small).obstacle)
    find(small).prepare()()
    contender = find(repeated(small, question.values, wanted="integers" if ours else "floats"))
    if contender.obstacle is not None:
        return reply(None, contender.obstacle)
    return reply(extra_bytes(contender.prepare()), None)


if __name__ == "__main__":
    print(json.dumps(asdict(answer(Question(**json.loads(sys.argv[1]))))))
