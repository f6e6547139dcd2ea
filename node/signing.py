"""A member's secrets at work: signatures that the journal has let through, and the keys of its updates."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from folkmoot.contracts.types import Domain
from folkmoot.node.journal import AlreadySigned, Journal, SlotKind
from folkmoot.node.protocol import canonical, messages
from folkmoot.node.protocol.messages import Body, Signed
from folkmoot.privacy.sealing import SealKey


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs as one member. Every signature is in the journal before `sign_once` returns it."""

    domain: Domain
    signer_key: bytes = field(repr=False)
    """secp256k1, 32 bytes."""
    box_key: bytes = field(repr=False)
    """X25519 private key, 32 bytes: opens keyrings; the keys of updates are derived from it."""
    journal: Journal = field(repr=False)

    def sign_once(self, body: Body) -> Signed[Body]:
        """The message of this body's slot: what was signed for it before, else this body, signed.

        Raises JournalUnwritable or JournalCorrupt; then nothing was signed.
        """
        kept = self.recall(body)
        if kept is not None:
            return kept
        message = messages.sign(self.domain, body, self.signer_key)
        kind, slot = messages.slot(body)
        try:
            self.journal.claim(SlotKind(kind), slot, message.digest, message.encode())
        except AlreadySigned:
            kept = self.recall(body)
            assert kept is not None
            return kept
        return message

    def recall(self, body: Body) -> Signed[Body] | None:
        """What was signed for the slot of this body."""
        kind, slot = messages.slot(body)
        return self.recall_slot(kind, slot)

    def recall_slot(self, kind: str, slot: tuple[int, ...]) -> Signed[Body] | None:
        kept = self.journal.recall(SlotKind(kind), slot)
        return None if kept is None else messages.decode(self.domain, kept.payload)

    def update_key(self, task: int, round_: int) -> SealKey:
        """The key that seals this member's update of a round.

        A keyed BLAKE2b of the round's name, so that a node that crashed between commitment and reveal
        derives it again; nobody without the box key can, and no two rounds share one.
        """
        context = canonical.encode([self.domain.chain_id, self.domain.contract, task, round_])
        digest = hashlib.blake2b(context, key=self.box_key, digest_size=32, person=b"fm-update-key")
        return SealKey(digest.digest())
