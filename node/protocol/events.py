"""What goes into a round's state machine and what comes out: terms, phases, offences, events, actions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from folkmoot.contracts.types import Commitment, Digest, Membership, RoundResult
from folkmoot.node.protocol.admission import Admission
from folkmoot.node.protocol.messages import Body, Proposal, Signed, Vote


class Phase(Enum):
    """What a member is waiting for."""

    TRAIN = "train"
    COMMIT = "commit"
    REVEAL = "reveal"
    VOTE = "vote"
    ATTEST = "attest"
    FINALIZE = "finalize"


class Offence(Enum):
    """What a member was caught at. Kept by the node that saw it, with the signed evidence."""

    TWO_COMMITMENTS = "two-commitments"
    TWO_VOTES = "two-votes"
    TWO_PROPOSALS = "two-proposals"
    TWO_RESULTS = "two-results"
    INVALID_VOTE = "invalid-vote"
    INVALID_PROPOSAL = "invalid-proposal"
    FALSE_RESULT = "false-result"
    SILENT_PROPOSER = "silent-proposer"
    WRONG_KEY = "wrong-key"
    GARBAGE = "garbage"


@dataclass(frozen=True, slots=True)
class RoundTerms:
    """What is fixed when a round opens. Times are Unix seconds, windows seconds."""

    task: int
    round: int
    membership: Membership
    me: int
    previous: Digest
    opened_at: float
    commit_window: float
    reveal_window: float
    attempt_window: float
    stagger: float
    """Seconds between the members' turns to send the finished result to the chain."""


@dataclass(frozen=True, slots=True)
class Ready:
    """This member's update is sealed and in the blob store."""

    commitment: Commitment
    key: bytes


@dataclass(frozen=True, slots=True)
class Heard:
    """A message whose signature was checked against this round's membership; one's own included."""

    message: Signed[Body]


@dataclass(frozen=True, slots=True)
class Posted:
    """A commitment that the contract accepted within the window."""

    message: Signed[Commitment]


@dataclass(frozen=True, slots=True)
class PostedKey:
    """A key that the contract accepted for a posted commitment."""

    member: int
    key: bytes


@dataclass(frozen=True, slots=True)
class Fetched:
    """The ciphertext of this commitment is in the blob store, complete."""

    commitment: Digest
    """The digest that was signed."""


@dataclass(frozen=True, slots=True)
class Concluded:
    """The result that this member computed from the proposal of an attempt."""

    attempt: int
    result: RoundResult


@dataclass(frozen=True, slots=True)
class Refused:
    """The contract refused the result of this attempt for good; another attempt has to follow."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


Event = Ready | Heard | Posted | PostedKey | Fetched | Concluded | Refused | Tick


@dataclass(frozen=True, slots=True)
class Say:
    """Sign (once per journal slot), publish, and feed back as Heard."""

    body: Body


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get the ciphertext, then answer with Fetched."""

    commitment: Signed[Commitment]


@dataclass(frozen=True, slots=True)
class Conclude:
    """Compute the result; everything it needs is held. Answer with Concluded."""

    proposal: Signed[Proposal]
    votes: tuple[Signed[Vote], ...]
    admission: Admission
    commitments: tuple[Signed[Commitment], ...]
    """The admitted ones, in order of member."""
    keys: tuple[bytes, ...]
    """Their keys, in the same order."""


@dataclass(frozen=True, slots=True)
class Submit:
    """Send the result to the chain."""

    result: RoundResult
    signatures: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class Accuse:
    """Record an offence with the messages that prove it."""

    member: int
    offence: Offence
    detail: str
    evidence: tuple[Signed[Body], ...]


Action = Say | Fetch | Conclude | Submit | Accuse
