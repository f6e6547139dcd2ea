"""What each model is worth on this member's own test data, measured beside the rounds."""

from __future__ import annotations

from collections import deque

import trio

from folkmoot.node.history import Standing
from folkmoot.node.model import ModelMalformed, read_model
from folkmoot.node.record import Evaluated, Trouble
from folkmoot.node.services import Services
from folkmoot.node.trainer import Config, Evaluation, TrainerError, run_evaluate

BEHIND = 16
"""Models that may wait for a trainer that is slower than the rounds; the oldest go first."""


class Evaluator:
    """Lets the trainer evaluate the models of one task, in order, each once."""

    def __init__(self, services: Services, task: int) -> None:
        self._services = services
        self._task = task
        self._waiting: deque[Standing] = deque(maxlen=BEHIND)
        self._last = -2
        self._news = trio.Event()
        self._idle = trio.Event()
        self._idle.set()

    def add(self, standing: Standing) -> None:
        """Evaluate the model that the open round starts from."""
        number = standing.state.round - 1
        if number != self._last:
            self._last = number
            self._waiting.append(standing)
            self._idle = trio.Event()
            self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            while self._waiting:
                await self._evaluate(self._waiting.popleft())
            self._idle.set()

    async def idle(self) -> None:
        """Return when everything that was added is evaluated, or the patience for one blob is over."""
        with trio.move_on_after(self._services.pace.fetch):
            await self._idle.wait()

    async def _evaluate(self, standing: Standing) -> None:
        number = standing.state.round - 1
        try:
            worth: Evaluation = await self._services.training(self._measure, standing)
        except (TrainerError, ModelMalformed, OSError) as error:
            what = f"evaluating the model of round {number}: {error}"
            self._services.observe(Trouble(self._services.clock(), what))
            return
        self._services.observe(
            Evaluated(self._services.clock(), self._task, number, worth.loss, worth.examples, worth.metrics)
        )

    def _measure(self, standing: Standing) -> Evaluation:
        specification = standing.specification
        model = read_model(standing.base_path, specification.layout)
        config: Config = {**dict(specification.fit), "task": self._task, "round": standing.state.round - 1}
        return run_evaluate(self._services.trainer, model, specification.layout, config)
