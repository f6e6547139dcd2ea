"""Who may say what: the check that every gossiped message passes before it is delivered or relayed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from folkmoot.contracts.eip712 import BadSignature, UnencodableField
from folkmoot.contracts.types import Commitment, Digest, Domain, Membership, Role
from folkmoot.node.protocol import admission, canonical, messages
from folkmoot.node.protocol.canonical import MalformedError
from folkmoot.node.protocol.machine import MAX_ATTEMPTS
from folkmoot.node.protocol.messages import Body, Proposal, Reveal, Signed, Vote
from folkmoot.p2p.types import Decision, PeerId, Validation

MAX_VARIANTS = 2
"""Different messages of one member for one slot: two are evidence, more are a flood."""


@dataclass(frozen=True, slots=True)
class OpenRound:
    """The round of a task that messages are accepted for, and the members that may sign in it."""

    round: int
    membership: Membership


Slot = tuple[str, int, int]
"""Kind, author and attempt: where one honest member ever says one thing."""


@dataclass(slots=True)
class _Said:
    """What was let through of one round."""

    variants: dict[Slot, set[Digest]] = field(default_factory=dict)
    named: set[Digest] = field(default_factory=set)
    """Votes that a proposal of the member whose turn it is names."""
    awaited: set[tuple[Digest, bytes]] = field(default_factory=set)
    """(digest of a commitment, hash of its key) where that key has not come through."""
    reached: dict[int, int] = field(default_factory=dict)
    """The highest attempt that each member voted in."""


def scope_of(task: int, round_: int) -> bytes:
    """The gossip scope of one round."""
    return canonical.encode([task, round_])


class MessageValidator:
    """Decodes, checks signer and place, bounds floods. Called by the gossip with the peer that sent it.

    Commitments for the round after the open one are let through too, if its members will be the same: a
    peer may have seen the chain earlier. Everything else that is early or too much is ignored, not rejected,
    so that the gossip offers it again.
    """

    def __init__(self, domain: Domain, on_garbage: Callable[[PeerId, str], None]) -> None:
        self._domain = domain
        self._on_garbage = on_garbage
        self._rounds: dict[int, OpenRound] = {}
        self._said: dict[tuple[int, int], _Said] = {}

    def open_round(self, task: int, open_round: OpenRound) -> None:
        """From now on messages of this round (and commitments for the next) of the task are accepted."""
        self._rounds[task] = open_round
        for place in [p for p in self._said if p[0] == task and p[1] < open_round.round]:
            del self._said[place]

    def close_task(self, task: int) -> None:
        self._rounds.pop(task, None)
        for place in [p for p in self._said if p[0] == task]:
            del self._said[place]

    def __call__(self, sender: PeerId, data: bytes) -> Validation:
        try:
            message = messages.decode(self._domain, data)
        except (MalformedError, UnencodableField) as error:
            return self._reject(sender, str(error))
        task, round_ = messages.task_and_round(message.body)
        current = self._rounds.get(task)
        if current is None or not current.round <= round_ <= current.round + 1:
            return Validation(Decision.IGNORE, reason=f"round {round_} of task {task} is not open here")
        if messages.epoch_of(message.body) not in (None, current.membership.epoch):
            return Validation(Decision.IGNORE, reason="it is of another epoch")
        if round_ > current.round and not isinstance(message.body, Commitment):
            return Validation(Decision.IGNORE, reason=f"round {round_} of task {task} is not open yet")
        if (why := self._not_signed(message, current.membership)) is not None:
            return self._reject(sender, why)
        said = self._said.setdefault((task, round_), _Said())
        if (why := _too_much(message, said, current.membership)) is not None:
            return Validation(Decision.IGNORE, reason=why)
        _note(message, said, current.membership)
        return Validation(Decision.ACCEPT, scope_of(task, round_))

    def _not_signed(self, message: Signed[Body], membership: Membership) -> str | None:
        author = messages.author(message.body)
        if author >= len(membership.records) or membership.records[author].role is not Role.MEMBER:
            return f"seat {author} has no signing member"
        try:
            signer = message.signer()
        except BadSignature as error:
            return f"signature of member {author}: {error}"
        expected = membership.records[author].signer
        return None if signer == expected else f"member {author} signs as {expected}, found {signer}"

    def _reject(self, sender: PeerId, reason: str) -> Validation:
        self._on_garbage(sender, reason)
        return Validation(Decision.REJECT, reason=reason)


def _slot(body: Body) -> Slot:
    return messages.kind_of(body), messages.author(body), messages.attempt_of(body)


def _too_much(message: Signed[Body], said: _Said, membership: Membership) -> str | None:
    """Why a message goes beyond what its author may say, or None.

    Beyond two variants only what is needed to follow the honest majority comes through: the votes that a
    proposal names, and the keys that commitments bind. Otherwise a liar could fill one peer's slots with
    other variants than its neighbour's, and the two could never resolve the same proposal.
    """
    body = message.body
    kind, author, attempt = slot = _slot(body)
    # Beyond the horizon a vote has to go twice as far each time, so there are at most 32 of a member.
    leaps = isinstance(body, Vote) and attempt >= 2 * said.reached.get(author, 0)
    if attempt > _horizon(said, membership) and not leaps:
        return f"attempt {attempt} is far ahead"
    variants = said.variants.get(slot, set())
    if message.name in variants or len(variants) < MAX_VARIANTS:
        return None
    if isinstance(body, Vote) and message.name in said.named:
        return None
    if isinstance(body, Reveal) and _binding(body) in said.awaited:
        return None
    return f"member {author} floods its {kind}"


def _binding(reveal: Reveal) -> tuple[Digest, bytes]:
    return reveal.commitment, hashlib.sha256(reveal.key).digest()


def _horizon(said: _Said, membership: Membership) -> int:
    """The last attempt that messages are taken of: counted from one that f + 1 members reached."""
    order = sorted(said.reached.values(), reverse=True)
    behind = membership.max_faulty
    return (order[behind] if len(order) > behind else 0) + 2 * MAX_ATTEMPTS


def _note(message: Signed[Body], said: _Said, membership: Membership) -> None:
    """Remember what a message lets through after it."""
    said.variants.setdefault(_slot(message.body), set()).add(message.name)
    match message.body:
        case Commitment() as commitment:
            said.awaited.add((message.digest, commitment.key_hash))
        case Reveal() as reveal:
            said.awaited.discard(_binding(reveal))
        case Vote() as vote:
            said.reached[vote.voter] = max(said.reached.get(vote.voter, 0), vote.attempt)
        case Proposal() as proposal:
            turn = admission.proposer(proposal.task, proposal.round, proposal.attempt, membership)
            if proposal.proposer == turn:
                said.named.update(proposal.votes)
