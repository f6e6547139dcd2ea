"""What a running node tells about itself: status.json, rewritten whenever something changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import trio

from folkmoot.contracts.types import Membership
from folkmoot.node.home import Home
from folkmoot.node.record import (
    Accused,
    Evaluated,
    PhaseEntered,
    Record,
    RoundApplied,
    Traffic,
    Trained,
    Trouble,
)
from folkmoot.node.services import in_thread
from folkmoot.p2p.identity import peer_text
from folkmoot.p2p.types import PeerId

KEPT = 20
"""Accusations and troubles that the status shows."""


class StatusFile:
    """Collects records; writes the file from a worker thread, at most once a second."""

    def __init__(self, home: Home, name: str, peer: PeerId, signer: str) -> None:
        self._home = home
        self._about: dict[str, object] = {
            "name": name,
            "process": os.getpid(),
            "peer_id": peer_text(peer),
            "signer": signer,
        }
        self._tasks: dict[int, dict[str, object]] = {}
        self._accused: list[dict[str, object]] = []
        self._troubles: list[dict[str, object]] = []
        self._traffic: dict[str, object] = {}
        self._changed = True

    def take(self, record: Record) -> None:
        """Note a record."""
        self._changed = True
        match record:
            case PhaseEntered():
                self._task(record.task).update(
                    round=record.round,
                    attempt=record.attempt,
                    phase=record.phase,
                    since=record.time,
                    deadline=record.deadline,
                )
            case Trained():
                self._task(record.task)["trained"] = {"examples": record.examples, "seconds": record.seconds}
            case RoundApplied():
                self._task(record.task)["last_round"] = {
                    "round": record.round,
                    "outcome": record.outcome,
                    "model": record.model,
                    "verdicts": record.verdicts,
                    "scores": list(record.scores),
                    "computed_here": record.computed,
                }
            case Evaluated():
                worth = {"round": record.round, "loss": record.loss, **record.metrics}
                self._task(record.task)["evaluation"] = worth
            case Accused():
                seen: dict[str, object] = {
                    "round": record.round,
                    "member": record.member,
                    "offence": record.offence,
                    "detail": record.detail,
                }
                self._accused = [*self._accused, seen][-KEPT:]
            case Trouble():
                self._troubles = [*self._troubles, {"time": record.time, "what": record.what}][-KEPT:]
            case Traffic():
                self._traffic = {"sent_bytes": record.sent, "received_bytes": record.received}

    async def write_forever(
        self, connected: Callable[[], Iterable[PeerId]], members: Callable[[], Membership | None]
    ) -> None:
        """Until cancelled. A disk that refuses the file does not stop the node."""
        seen: list[str] = []
        while True:
            peers = [peer_text(peer) for peer in connected()]
            if self._changed or peers != seen:
                self._changed, seen = False, peers
                try:
                    await in_thread(self._home.write_status, self._account(peers, members()))
                except OSError:
                    self._changed = True
            await trio.sleep(1.0)

    def _account(self, peers: list[str], membership: Membership | None) -> dict[str, object]:
        return {
            **self._about,
            "epoch": None if membership is None else membership.epoch,
            "members": 0 if membership is None else len(membership.signers),
            "connected": peers,
            "tasks": {str(task): dict(known) for task, known in self._tasks.items()},
            "accused": self._accused,
            "troubles": self._troubles,
            "traffic": self._traffic,
        }

    def _task(self, task: int) -> dict[str, object]:
        return self._tasks.setdefault(task, {})
