"""What a peer is made of: its ports, its secrets, its trainer, and the clock and threads that it is lent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import trio

from folkmoot.node.conclude import Arithmetic
from folkmoot.node.ports import BlobStore, Gossip, Ledger
from folkmoot.node.record import Observer
from folkmoot.node.signing import Signer
from folkmoot.node.trainer import Trainer
from folkmoot.node.update_keys import UpdateKeys
from folkmoot.node.validator import MessageValidator

Clock = Callable[[], float]
"""Unix seconds."""


class Blocking(Protocol):
    """Runs a blocking function without holding up the event loop."""

    def __call__(self, function: Callable[..., Any], *arguments: object) -> Awaitable[Any]: ...


async def in_thread(function: Callable[..., Any], *arguments: object) -> Any:
    """Blocking work in a worker thread, given up (not stopped) when the waiting task is cancelled."""
    return await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True)  # type: ignore[call-arg]


def one_at_a_time() -> Blocking:
    """Runs one function at a time, each in a worker thread; one that was given up holds its place to its end.

    A member's training code is not made for two threads at once, and cannot be stopped.
    """
    place = trio.CapacityLimiter(1)

    async def run(function: Callable[..., Any], *arguments: object) -> Any:
        return await trio.to_thread.run_sync(  # type: ignore[call-arg]
            function, *arguments, abandon_on_cancel=True, limiter=place
        )

    return run


async def inline(function: Callable[..., Any], *arguments: object) -> Any:
    """Blocking work at once: for the simulator, where time stands still meanwhile."""
    await trio.lowlevel.checkpoint()
    return function(*arguments)


@dataclass(frozen=True, slots=True)
class Pace:
    """Waits in seconds."""

    poll: float = 1.0
    """Between looks at the chain."""
    retry: float = 2.0
    """Before something that failed outside is tried again."""
    fetch: float = 600.0
    """For one blob of a finished round."""
    stagger: float = 2.0
    """Between the members' turns to send a finished result."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What this node is prepared to hold, in bytes, and how many finished rounds it keeps pinned."""

    update: int = 1 << 40
    model: int = 1 << 40
    keep_rounds: int = 0
    """0 keeps every round."""


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a peer needs from outside the protocol."""

    signer: Signer
    signer_address: str
    ledger: Ledger
    gossip: Gossip
    blobs: BlobStore
    keys: UpdateKeys
    trainer: Trainer
    validator: MessageValidator
    workspace: Path
    """An empty folder for files on their way into the blob store."""
    observe: Observer
    clock: Clock
    blocking: Blocking = in_thread
    training: Blocking = field(default_factory=one_at_a_time)
    """Where the trainer is called, for all tasks together."""
    arithmetic: Arithmetic = field(default_factory=Arithmetic)
    pace: Pace = field(default_factory=Pace)
    limits: Limits = field(default_factory=Limits)
    traffic: Callable[[], tuple[int, int]] = lambda: (0, 0)
    """Bytes sent and received on the wire so far."""
