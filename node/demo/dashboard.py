"""Live progress of a federation: one line per peer on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from folkmoot.node.demo.summary import MAX_SCORE, Federation
from folkmoot.node.record import Accused, Evaluated, PhaseEntered, Record, RoundApplied, Trained, Trouble

__all__ = ["Board", "LiveProgress", "PlainProgress", "Progress", "progress"]

BAR = 40
"""Characters of a bar of accuracy 1."""


class Progress(Protocol):
    """Where the demonstration says what happens. Used as a context manager, from one thread."""

    def observe(self, member: int, record: Record) -> None:
        """A member's node recorded this."""

    def announce(self, text: str) -> None:
        """What the demonstration itself does, such as starting the chain."""

    def refresh(self) -> None:
        """Let the clocks move on."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def progress(console: Console, federation: Federation, clock: Callable[[], float]) -> Progress:
    """A live table when the console is a terminal, plain lines when it is not. `clock` gives Unix seconds."""
    if console.is_terminal:
        return LiveProgress(console, federation, clock)
    return PlainProgress(console, federation, clock)


@dataclass(slots=True)
class Peer:
    """The last that is known of one peer."""

    round: int | None = None
    phase: str = "starting"
    since: float | None = None
    verdict: str = ""
    score: int | None = None
    trouble: str = ""


@dataclass(slots=True)
class Board:
    """The state behind a display: fed with records, read by `table`."""

    federation: Federation
    started: float
    peers: dict[int, Peer] = field(init=False)
    accuracies: dict[int, float] = field(init=False, default_factory=dict)
    """By round, -1 for the genesis model, as the first honest member measured it."""
    doing: str = ""

    def __post_init__(self) -> None:
        self.peers = {member: Peer() for member in range(self.federation.members)}

    def observe(self, member: int, record: Record) -> None:
        """Take in what a member recorded."""
        peer = self.peers[member]
        match record:
            case PhaseEntered():
                peer.round, peer.phase, peer.since = record.round, record.phase, record.time
                peer.trouble = ""
            case RoundApplied():
                peer.phase, peer.since = "applied", record.time
                for seat, verdict in record.verdicts.items():
                    if int(seat) in self.peers:
                        self.peers[int(seat)].verdict = verdict
                for seat_index, score in enumerate(record.scores):
                    if seat_index in self.peers:
                        self.peers[seat_index].score = score
            case Evaluated():
                if member in self.federation.honest and "accuracy" in record.metrics:
                    self.accuracies.setdefault(record.round, record.metrics["accuracy"])
            case Trouble():
                peer.trouble = record.what
            case _:
                pass

    def table(self, now: float) -> RenderableType:
        """The whole display at time `now` (Unix seconds)."""
        table = Table(title=self._title(now), title_justify="left", expand=False)
        for heading in ("peer", "role", "round", "phase", "for", "last verdict", "last score", "trouble"):
            table.add_column(heading, justify="right" if heading in ("peer", "for", "last score") else "left")
        for member, peer in self.peers.items():
            malicious = member in self.federation.malicious
            table.add_row(
                str(member),
                Text(self.federation.attack or "malicious", style="red") if malicious else Text("honest"),
                "" if peer.round is None else str(peer.round),
                peer.phase,
                "" if peer.since is None else f"{max(0.0, now - peer.since):.0f} s",
                peer.verdict,
                "" if peer.score is None else f"{peer.score / MAX_SCORE:.2f}",
                Text(peer.trouble[:40], style="yellow"),
            )
        return Group(table, *self._accuracy_lines(), Text(self.doing, style="dim"))

    def _title(self, now: float) -> str:
        return f"{self.federation.dataset}, rule {self.federation.rule}: {now - self.started:.0f} s"

    def _accuracy_lines(self) -> list[Text]:
        lines = []
        for number, accuracy in sorted(self.accuracies.items()):
            name = "start" if number < 0 else f"round {number}"
            line = Text(f"{name:>8}  ")
            line.append("━" * round(accuracy * BAR), style="cyan")
            line.append(f" {accuracy:.3f}")
            lines.append(line)
        return lines


class LiveProgress:
    """Redraws the board in place on a terminal."""

    def __init__(self, console: Console, federation: Federation, clock: Callable[[], float]) -> None:
        self._board = Board(federation, clock())
        self._clock = clock
        self._live = Live(self._board.table(clock()), console=console, auto_refresh=False, transient=False)

    def observe(self, member: int, record: Record) -> None:
        self._board.observe(member, record)

    def announce(self, text: str) -> None:
        self._board.doing = text
        self.refresh()

    def refresh(self) -> None:
        self._live.update(self._board.table(self._clock()), refresh=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.refresh()
        self._live.__exit__(kind, error, trace)


class PlainProgress:
    """One line per happening, with the seconds since the start: for files and pipes."""

    def __init__(self, console: Console, federation: Federation, clock: Callable[[], float]) -> None:
        self._board = Board(federation, clock())
        self._console = console
        self._clock = clock
        self._rounds_told: set[int] = set()

    def observe(self, member: int, record: Record) -> None:
        known = set(self._board.accuracies)
        self._board.observe(member, record)
        for number in set(self._board.accuracies) - known:
            name = "the genesis model" if number < 0 else f"round {number}"
            self._say(f"{name}: accuracy {self._board.accuracies[number]:.3f}")
        match record:
            case PhaseEntered():
                self._say(f"peer {member}: round {record.round}, {record.phase}")
            case Trained():
                self._say(f"peer {member}: trained on {record.examples} examples in {record.seconds:.1f} s")
            case RoundApplied() if record.round not in self._rounds_told:
                self._rounds_told.add(record.round)
                bad = [
                    f"{seat} {verdict}" for seat, verdict in record.verdicts.items() if verdict != "delivered"
                ]
                self._say(
                    f"round {record.round} is final, gas {record.gas_used:,}, "
                    f"not delivered: {', '.join(bad) or 'none'}"
                )
            case Accused():
                self._say(f"peer {member} accuses member {record.member}: {record.offence}, {record.detail}")
            case Trouble():
                self._say(f"peer {member}: {record.what}")
            case _:
                pass

    def announce(self, text: str) -> None:
        self._say(text)

    def refresh(self) -> None:
        """Plain lines do not move."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to put back."""

    def _say(self, text: str) -> None:
        elapsed = self._clock() - self._board.started
        self._console.print(Text(f"{elapsed:7.1f} s  {text}"), soft_wrap=True)
