"""The peer: follows the chain, routes messages, and plays every open task it was asked to join."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

import trio

from folkmoot.contracts.types import (
    AddressAnnounced,
    DirectCommitment,
    DirectReveal,
    Event,
    LedgerError,
    Membership,
    MembershipChanged,
    Reorganised,
    RoundFinalized,
    TaskClosed,
    TaskOpened,
    TaskStatus,
)
from folkmoot.node.history import TaskUnsound
from folkmoot.node.protocol import messages
from folkmoot.node.record import Trouble
from folkmoot.node.runner import TaskRunner
from folkmoot.node.services import Services

OnMembership = Callable[[Membership, dict[int, tuple[str, ...]]], None]
"""Told the newest membership and the announced addresses whenever one of them changes."""


class Peer:
    """One member's node between its ports."""

    def __init__(
        self, services: Services, on_membership: OnMembership, tasks: Collection[int] | None = None
    ) -> None:
        """`tasks` are the ids to join; every open task when None."""
        self._services = services
        self._on_membership = on_membership
        self._wanted = None if tasks is None else frozenset(tasks)
        self._runners: dict[int, TaskRunner] = {}

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            await self._follow(nursery)

    async def _listen(self) -> None:
        domain = self._services.signer.domain
        while True:
            _, data = await self._services.gossip.receive()
            message = messages.decode(domain, data)
            task, _ = messages.task_and_round(message.body)
            if task in self._runners:
                self._runners[task].hear(message)

    async def _follow(self, nursery: trio.Nursery) -> None:
        """Poll the chain; begin with what it says at present."""
        pace, ledger = self._services.pace, self._services.ledger
        started = False
        events: deque[Event] = deque()
        while True:
            try:
                if not started:
                    await self._look_at_members()
                    for task in await self._services.blocking(ledger.tasks):
                        if task.status is TaskStatus.OPEN:
                            self._join(task.id, nursery)
                    started = True
                events.extend(await self._services.blocking(ledger.poll))
                while events:  # one that could not be taken is not lost
                    await self._take(events[0], nursery)
                    events.popleft()
            except LedgerError as error:
                self._services.observe(Trouble(self._services.clock(), str(error)))
                await trio.sleep(pace.retry)
            await trio.sleep(pace.poll)

    async def _take(self, event: Event, nursery: trio.Nursery) -> None:
        match event:
            case MembershipChanged() | AddressAnnounced():
                await self._look_at_members()
            case TaskOpened(task):
                self._join(task, nursery)
            case RoundFinalized() if event.result.task in self._runners:
                self._runners[event.result.task].chain_changed(event)
            case DirectCommitment() if event.commitment.task in self._runners:
                self._runners[event.commitment.task].posted(event)
            case DirectReveal() if event.task in self._runners:
                self._runners[event.task].posted(event)
            case TaskClosed(task) if task in self._runners:
                self._runners[task].chain_changed()
            case Reorganised():
                await self._look_at_members()
                for runner in self._runners.values():
                    runner.chain_changed()

    async def _look_at_members(self) -> None:
        ledger, blocking = self._services.ledger, self._services.blocking
        membership = await blocking(ledger.membership)
        self._on_membership(membership, await blocking(ledger.addresses))

    def _join(self, task: int, nursery: trio.Nursery) -> None:
        if task in self._runners or (self._wanted is not None and task not in self._wanted):
            return
        self._runners[task] = TaskRunner(self._services, task)
        nursery.start_soon(self._run_task, task)

    async def _run_task(self, task: int) -> None:
        try:
            await self._runners[task].run()
        except* TaskUnsound as group:
            for error in group.exceptions:
                self._services.observe(Trouble(self._services.clock(), str(error)))
