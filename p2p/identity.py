"""libp2p identities: Ed25519 keys, the peer ids made of them, and their text form. No I/O."""

from __future__ import annotations

from libp2p.crypto.ed25519 import Ed25519PrivateKey, Ed25519PublicKey, create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.peer.id import ID

from folkmoot.p2p.types import P2PError, PeerId

__all__ = [
    "InvalidPeerId",
    "key_pair_of",
    "peer_id_from_text",
    "peer_id_of",
    "peer_id_of_seed",
    "peer_text",
    "public_key_of",
    "public_key_of_peer",
]

_KEY = 32
_ED25519_PREFIX = bytes.fromhex("002408011220")
"""Identity multihash of a protobuf `PublicKey` {Type: Ed25519, Data: 32 bytes} (libp2p peer-ids spec)."""


class InvalidPeerId(P2PError):
    """The value is not a libp2p peer id, or not one of an Ed25519 key."""


def key_pair_of(seed: bytes) -> KeyPair:
    """The libp2p key pair of a 32-byte Ed25519 seed. Raises ValueError on another length."""
    if len(seed) != _KEY:
        raise ValueError(f"an Ed25519 seed has {_KEY} bytes, this one has {len(seed)}")
    return create_new_key_pair(seed)


def public_key_of(seed: bytes) -> bytes:
    """Ed25519 public key, 32 bytes, of a 32-byte seed."""
    key = key_pair_of(seed).private_key
    assert isinstance(key, Ed25519PrivateKey)
    return bytes(key.get_public_key().to_bytes())


def peer_id_of(public_key: bytes) -> PeerId:
    """The peer id of a 32-byte Ed25519 public key. Raises ValueError on another length."""
    if len(public_key) != _KEY:
        raise ValueError(f"an Ed25519 public key has {_KEY} bytes, this one has {len(public_key)}")
    return PeerId(bytes(ID.from_pubkey(Ed25519PublicKey.from_bytes(public_key)).to_bytes()))


def peer_id_of_seed(seed: bytes) -> PeerId:
    """The peer id of a 32-byte Ed25519 seed."""
    return peer_id_of(public_key_of(seed))


def public_key_of_peer(peer: PeerId) -> bytes:
    """The 32-byte Ed25519 public key inside a peer id. Raises InvalidPeerId when it holds none."""
    if len(peer) != len(_ED25519_PREFIX) + _KEY or not peer.startswith(_ED25519_PREFIX):
        raise InvalidPeerId(
            f"peer id {bytes(peer).hex()} does not embed an Ed25519 key; register an Ed25519 identity"
        )
    return bytes(peer[len(_ED25519_PREFIX) :])


def peer_text(peer: PeerId) -> str:
    """Base58 text of a peer id, as in `/p2p/<text>` of a multiaddress."""
    return str(ID(bytes(peer)).to_base58())


def peer_id_from_text(text: str) -> PeerId:
    """The peer id of its base58 text. Raises InvalidPeerId."""
    try:
        return PeerId(bytes(ID.from_base58(text).to_bytes()))
    except ValueError as error:
        raise InvalidPeerId(f"{text!r} is not a base58 peer id") from error
