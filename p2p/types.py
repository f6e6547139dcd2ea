"""Names shared by the p2p room: peer ids, CIDs, verdicts of a validator, and the room's errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NewType

PeerId = NewType("PeerId", bytes)
"""A libp2p peer id: multihash bytes."""
Cid = NewType("Cid", str)
"""A CIDv1 in base32 text."""

MAX_MESSAGE = 100_000
"""Bytes of a gossiped message."""


class P2PError(Exception):
    """Base of every failure of the p2p room."""


class BlobError(P2PError):
    """Base of the blob errors."""


class BlobUnavailable(BlobError):
    """No provider delivered the blob before the deadline."""


class BlobTooLarge(BlobError):
    """The blob is larger than the caller allows."""


class BlobCorrupt(BlobError):
    """Bytes on this disk do not hash to their CID."""


class StoreFull(BlobError):
    """The disk has no room for the blob; nothing half-written is left."""


class InvalidCid(BlobError):
    """The text is not a CIDv1 with sha2-256 and a supported codec."""


class AddressInUse(P2PError):
    """The host could not listen on the configured port."""


class Decision(Enum):
    """What a validator says of a message."""

    ACCEPT = "accept"
    """Deliver and relay."""
    IGNORE = "ignore"
    """Neither deliver nor relay; the sender is not to blame."""
    REJECT = "reject"
    """Malformed or unsigned: drop, count against the peer that sent it."""


@dataclass(frozen=True, slots=True)
class Validation:
    """A validator's verdict. `scope` names the conversation that the message is kept under."""

    decision: Decision
    scope: bytes = b""
    reason: str = ""


Validator = Callable[[PeerId, bytes], Validation]
"""Called with the peer that handed the message over and its bytes; must be quick and must not raise."""
