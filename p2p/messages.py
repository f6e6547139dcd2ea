"""What stands between the wire and `Gossip.receive`: size, duplicates, validation, keeping, blame.

No I/O. The libp2p gossip and the one in memory both feed this, so both have the same semantics.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import trio

from folkmoot.p2p.identity import peer_text
from folkmoot.p2p.types import MAX_MESSAGE, Decision, P2PError, PeerId, Validation, Validator

__all__ = ["Intake", "IntakeLimits", "MessageTooLarge", "message_id"]

log = logging.getLogger("folkmoot.p2p")


class MessageTooLarge(P2PError):
    """A message to publish is longer than MAX_MESSAGE."""


def message_id(message: bytes) -> bytes:
    """SHA-256 of the bytes: what a message is called in a pull and in the duplicate filter."""
    return hashlib.sha256(message).digest()


@dataclass(frozen=True, slots=True)
class IntakeLimits:
    """Bounds of one node's memory of messages."""

    scopes: int = 64
    """Scopes kept; the oldest is dropped for one more."""
    messages_per_scope: int = 4_096
    bytes_per_scope: int = 64 << 20
    messages_per_peer: int = 1_024
    """Kept of one scope from one peer."""
    bytes_per_peer: int = 16 << 20
    remembered: int = 65_536
    """Ids in the duplicate filter."""
    undelivered: int = 4_096
    """Messages that wait for `receive`; beyond, new ones are left to a later pull."""
    validations_per_second: float = 100.0
    """Validations that one peer may cause in the long run; what it sends beyond is left to a later pull."""
    validations_at_once: int = 4_096
    offences: int = 16
    """Rejected messages of one peer until it is reported as an offender."""
    first_retry: float = 2.0
    last_retry: float = 60.0
    """Seconds after which an ignored message may be offered again; doubles from first to last."""


class _Scope:
    """Messages kept of one conversation, with how much of it each peer brought."""

    def __init__(self) -> None:
        self.messages: dict[bytes, bytes] = {}
        self.size = 0
        self.count_of: Counter[PeerId] = Counter()
        self.size_of: Counter[PeerId] = Counter()

    def keep(self, peer: PeerId, name: bytes, message: bytes, limits: IntakeLimits) -> None:
        if (
            len(self.messages) >= limits.messages_per_scope
            or self.size + len(message) > limits.bytes_per_scope
            or self.count_of[peer] >= limits.messages_per_peer
            or self.size_of[peer] + len(message) > limits.bytes_per_peer
        ):
            return
        self.messages[name] = message
        self.size += len(message)
        self.count_of[peer] += 1
        self.size_of[peer] += len(message)


class Intake:
    """The messages of one node: which it has seen, keeps for others, and has yet to hand out.

    A message that the validator accepts is delivered once, and kept under its scope until `forget`. One
    that it rejects counts against the peer that handed it over. One that it ignores may come again later:
    what is too early now may be in time after the next block.
    """

    def __init__(
        self,
        own: PeerId,
        validator: Validator,
        report_offender: Callable[[PeerId], None],
        limits: IntakeLimits | None = None,
    ) -> None:
        self._own = own
        self._validator = validator
        self._report_offender = report_offender
        self._limits = limits or IntakeLimits()
        self._scopes: OrderedDict[bytes, _Scope] = OrderedDict()
        self._seen: OrderedDict[bytes, Decision] = OrderedDict()
        self._ignored: OrderedDict[bytes, tuple[float, float]] = OrderedDict()
        self._waiting: deque[tuple[PeerId, bytes]] = deque()
        self._arrived = trio.Event()
        self._rejected: Counter[PeerId] = Counter()
        self._reasons: dict[PeerId, str] = {}
        self._allowance: dict[PeerId, tuple[float, float]] = {}
        self._offered = 0

    @property
    def rejected(self) -> Mapping[PeerId, int]:
        """Rejected messages by the peer that handed them over."""
        return MappingProxyType(self._rejected)

    @property
    def last_reason(self) -> Mapping[PeerId, str]:
        """Why the peer's last rejected message was rejected."""
        return MappingProxyType(self._reasons)

    def publish(self, scope: bytes, message: bytes) -> bool:
        """Keep an own message; False when it was published before. Raises MessageTooLarge."""
        if len(message) > MAX_MESSAGE:
            raise MessageTooLarge(
                f"the message has {len(message)} bytes, gossip carries at most {MAX_MESSAGE}; "
                "put the content in a blob and gossip its CID"
            )
        name = message_id(message)
        if self._seen.get(name) is Decision.ACCEPT:
            return False
        self._remember(name, Decision.ACCEPT)
        self._keep(self._own, scope, name, message)
        return True

    def admit(self, peer: PeerId, message: bytes) -> Decision:
        """Take a message that `peer` handed over; ACCEPT means that it is new and to be relayed."""
        if len(message) > MAX_MESSAGE:
            self.blame(peer, f"{len(message)} bytes, at most {MAX_MESSAGE}")
            return Decision.REJECT
        name = message_id(message)
        earlier = self._seen.get(name)
        if earlier is Decision.REJECT:
            self.blame(peer, self._reasons.get(peer, "rejected before"))
            return Decision.REJECT
        if (
            earlier is not None
            or self._too_soon(name)
            or len(self._waiting) >= self._limits.undelivered
            or not self._may_ask(peer)
        ):
            return Decision.IGNORE
        verdict = self._judge(peer, message)
        if verdict.decision is Decision.ACCEPT:
            self._remember(name, Decision.ACCEPT)
            self._keep(peer, verdict.scope, name, message)
            self._waiting.append((peer, message))
            self._arrived.set()
        elif verdict.decision is Decision.REJECT:
            self._remember(name, Decision.REJECT)
            self.blame(peer, verdict.reason or "rejected by the validator")
        else:
            self._postpone(name)
        return verdict.decision

    async def receive(self) -> tuple[PeerId, bytes]:
        """The next accepted message and the peer that handed it over, in order of acceptance."""
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self._arrived.is_set():
                self._arrived = trio.Event()
            await self._arrived.wait()
        return self._waiting.popleft()

    def receive_nowait(self) -> tuple[PeerId, bytes] | None:
        """The next accepted message when there is one."""
        return self._waiting.popleft() if self._waiting else None

    def forget(self, scope: bytes) -> None:
        """Stop keeping the messages of a scope. They stay in the duplicate filter."""
        self._scopes.pop(scope, None)

    def offers(self, limit: int) -> list[bytes]:
        """Ids of at most `limit` kept messages, newest scopes first; in turn when there are more."""
        names: list[bytes] = []
        for scope in reversed(self._scopes.values()):
            names.extend(scope.messages)
        if len(names) <= limit:
            return names
        start = self._offered % len(names)
        self._offered += limit
        return (names[start:] + names[:start])[:limit]

    def missing(self, offered: Iterable[bytes]) -> list[bytes]:
        """Which of the offered ids are worth asking for."""
        return [n for n in dict.fromkeys(offered) if n not in self._seen and not self._too_soon(n)]

    def kept(self, wanted: Iterable[bytes]) -> list[bytes]:
        """The kept messages among the wanted ids."""
        found = []
        for name in wanted:
            for scope in self._scopes.values():
                if name in scope.messages:
                    found.append(scope.messages[name])
                    break
        return found

    def _may_ask(self, peer: PeerId) -> bool:
        """Take one validation from the peer's allowance (a token bucket), if one is left."""
        now = trio.current_time()
        most = float(self._limits.validations_at_once)
        left, since = self._allowance.get(peer, (most, now))
        left = min(most, left + (now - since) * self._limits.validations_per_second)
        self._allowance[peer] = (max(left - 1, 0.0), now)
        return left >= 1

    def _judge(self, peer: PeerId, message: bytes) -> Validation:
        try:
            return self._validator(peer, message)
        except Exception as error:
            log.warning("the validator failed on a message of %s: %r", peer_text(peer), error)
            return Validation(Decision.IGNORE, reason=repr(error))

    def blame(self, peer: PeerId, reason: str) -> None:
        """Count a rejected message or a malformed answer against the peer that sent it."""
        self._rejected[peer] += 1
        self._reasons[peer] = reason
        log.info("rejected a message from %s: %s", peer_text(peer), reason)
        if self._rejected[peer] % self._limits.offences == 0:
            self._report_offender(peer)

    def _keep(self, peer: PeerId, scope: bytes, name: bytes, message: bytes) -> None:
        if scope not in self._scopes:
            while len(self._scopes) >= self._limits.scopes:
                self._scopes.popitem(last=False)
            self._scopes[scope] = _Scope()
        self._scopes[scope].keep(peer, name, message, self._limits)

    def _remember(self, name: bytes, decision: Decision) -> None:
        self._ignored.pop(name, None)
        self._seen[name] = decision
        while len(self._seen) > self._limits.remembered:
            self._seen.popitem(last=False)

    def _too_soon(self, name: bytes) -> bool:
        retry = self._ignored.get(name)
        return retry is not None and trio.current_time() < retry[0]

    def _postpone(self, name: bytes) -> None:
        _, wait = self._ignored.get(name, (0.0, self._limits.first_retry / 2))
        wait = min(2 * wait, self._limits.last_retry)
        self._ignored[name] = (trio.current_time() + wait, wait)
        self._ignored.move_to_end(name)
        while len(self._ignored) > self._limits.remembered:
            self._ignored.popitem(last=False)
