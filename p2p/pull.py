"""`/folkmoot/pull/1`: a member asks another for the kept messages that it lacks, so that loss heals.

One stream is one pull. Integers are big endian. The answerer sends the ids it offers (u16 count, 32 bytes
each), the asker those it wants (same form), the answerer the messages (u16 count, then u32 length and
bytes each). Every count and length is bounded before memory is taken.
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass

import trio

from folkmoot.p2p.host import Host
from folkmoot.p2p.identity import peer_text
from folkmoot.p2p.messages import Intake, message_id
from folkmoot.p2p.streams import PeerUnreachable, Stream, StreamBroken
from folkmoot.p2p.types import MAX_MESSAGE, P2PError, PeerId

__all__ = ["PROTOCOL", "PullMalformed", "PullPace", "Puller"]

log = logging.getLogger("folkmoot.p2p")

PROTOCOL = "/folkmoot/pull/1"
_ID = 32
MAX_IDS = 1_024
"""Ids in an offer or a wish."""
MAX_ANSWER = 8 << 20
"""Bytes of messages in one answer; the rest comes with the next pull."""


class PullMalformed(P2PError):
    """The other side broke the rules of the pull protocol."""


@dataclass(frozen=True, slots=True)
class PullPace:
    """Times in seconds."""

    interval: float = 3.0
    """Mean time between two pulls of one member."""
    deadline: float = 15.0
    """Of one pull, on either side."""
    rest: float = 0.2
    """Least time between two answers to the same peer."""


async def _read_ids(stream: Stream) -> list[bytes]:
    count = int.from_bytes(await stream.read_exactly(2), "big")
    if count > MAX_IDS:
        raise PullMalformed(f"{count} ids in one list, at most {MAX_IDS} are allowed")
    packed = await stream.read_exactly(count * _ID)
    return [packed[start : start + _ID] for start in range(0, len(packed), _ID)]


async def _write_ids(stream: Stream, names: list[bytes]) -> None:
    await stream.write(len(names).to_bytes(2, "big") + b"".join(names))


class Puller:
    """Asks connected members in turn, and answers them."""

    def __init__(self, host: Host, intake: Intake, pace: PullPace) -> None:
        self._host = host
        self._intake = intake
        self._pace = pace
        self._random = random.Random(bytes(host.peer_id))
        self._answered: dict[PeerId, float] = {}
        self._answering: set[PeerId] = set()
        host.set_stream_handler(PROTOCOL, self._answer)

    async def run(self) -> None:
        """Pull until cancelled: from each member that just connected, else from one at random."""
        asked: frozenset[PeerId] = frozenset()
        while True:
            connected = self._host.connected
            for peer in sorted(connected - asked) or self._anyone(connected):
                await self._pull(peer)
            asked = connected
            with trio.move_on_after(self._pace.interval * self._random.uniform(0.5, 1.5)):
                await self._host.keeper.wait_until(lambda seen=asked: bool(self._host.connected - seen))  # type: ignore[misc]

    def _anyone(self, connected: frozenset[PeerId]) -> list[PeerId]:
        return [self._random.choice(sorted(connected))] if connected else []

    async def _pull(self, peer: PeerId) -> None:
        try:
            with trio.fail_after(self._pace.deadline):
                stream = await self._host.open_stream(peer, PROTOCOL, self._pace.deadline)
                try:
                    await self._ask(stream, peer)
                finally:
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + 0.5):
                        await stream.reset()
        except PullMalformed as error:
            self._intake.blame(peer, str(error))
        except (PeerUnreachable, StreamBroken, trio.TooSlowError) as error:
            log.debug("no pull from %s: %s", peer_text(peer), error)

    async def _ask(self, stream: Stream, peer: PeerId) -> None:
        wanted = self._intake.missing(await _read_ids(stream))
        await _write_ids(stream, wanted)
        if not wanted:
            return
        count = int.from_bytes(await stream.read_exactly(2), "big")
        if count > len(wanted):
            raise PullMalformed(f"{count} messages were sent, {len(wanted)} were asked for")
        outstanding = set(wanted)
        for _ in range(count):
            length = int.from_bytes(await stream.read_exactly(4), "big")
            if length > MAX_MESSAGE:
                raise PullMalformed(f"a message of {length} bytes, at most {MAX_MESSAGE} are allowed")
            message = await stream.read_exactly(length)
            if message_id(message) not in outstanding:
                raise PullMalformed("a message that was not asked for")
            outstanding.discard(message_id(message))
            self._intake.admit(peer, message)

    async def _answer(self, stream: Stream, peer: PeerId) -> None:
        if peer in self._answering:
            raise PullMalformed("a second pull before the first was answered")
        self._answering.add(peer)
        try:
            with trio.fail_after(self._pace.deadline):
                await trio.sleep_until(self._answered.get(peer, 0.0) + self._pace.rest)
                await self._serve(stream)
        finally:
            self._answering.discard(peer)
            self._answered[peer] = trio.current_time()

    async def _serve(self, stream: Stream) -> None:
        await _write_ids(stream, self._intake.offers(MAX_IDS))
        wanted = await _read_ids(stream)
        if not wanted:
            return
        answer: list[bytes] = []
        size = 0
        for message in self._intake.kept(wanted):
            size += len(message)
            if size > MAX_ANSWER:
                break
            answer.append(message)
        await stream.write(len(answer).to_bytes(2, "big"))
        for message in answer:
            await stream.write(len(message).to_bytes(4, "big") + message)
