"""The keys of a round, wrapped for every member and auditor: one blob that every honest peer writes alike.

Whoever is a recipient opens it with the X25519 box key; a removed member opens nothing that came later.
Nothing here is random: all secrets derive from the round's own keys, so equal input gives equal bytes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import Final

from nacl import bindings
from nacl.exceptions import CryptoError

from folkmoot.privacy.sealing import KEY_BYTES, PrivacyError, SealKey

__all__ = [
    "MAX_SEATS",
    "KeyringBroken",
    "NotARecipient",
    "open_keyring",
    "seal_keyring",
    "usable_box_key",
]

MAX_SEATS: Final = 256
"""Seats of a registry, hence the most keys and the most recipients."""
_MAGIC: Final = b"FMKEYS1\n"
_COUNTS: Final = struct.Struct(">HH")
_ENTRY_KEY: Final = struct.Struct(f">H{KEY_BYTES}s")
_BOX_KEY: Final = 32
_WRAPPED: Final = bindings.crypto_box_SEALBYTES + KEY_BYTES
_NONCE: Final = bytes(bindings.crypto_secretbox_NONCEBYTES)


class KeyringBroken(PrivacyError):
    """The blob is not the keyring that an honest peer writes."""


class NotARecipient(PrivacyError):
    """The keyring was not wrapped for this box key."""


def usable_box_key(key: bytes) -> bool:
    """Whether bytes can be a recipient: 32 of them, and not a point of low order on Curve25519."""
    if len(key) != _BOX_KEY:
        return False
    try:
        bindings.crypto_box_beforenm(key, bytes([1]) * 32)
    except CryptoError:
        return False
    return True


def seal_keyring(keys: Mapping[int, SealKey], recipients: Sequence[bytes]) -> bytes:
    """Wrap the update keys (by member index) for each recipient's X25519 public key.

    Layout, big endian: magic, number of keys (u16), number of recipients (u16); for each recipient in
    order of its key: public key (32), sealed box of the body key (80); last the body, a secret box of
    (member u16, key 32) in order of member. Order and repetition of `recipients` do not matter, and one
    whose key is not `usable_box_key` gets no entry, so no member can block the others.

    Raises ValueError for indices or counts beyond 256 seats, or a key that has not 32 bytes.
    """
    plain = _encode_keys(keys)
    readers = sorted({bytes(r) for r in recipients if usable_box_key(r)})
    if len(readers) > MAX_SEATS:
        raise ValueError(f"a keyring has at most {MAX_SEATS} recipients, got {len(readers)}")
    head = _MAGIC + _COUNTS.pack(len(keys), len(readers))
    # The recipients enter the root too: another circle means another body key, so no box reuses a nonce.
    root = _derive(head + plain + b"".join(readers), b"", b"fm-keyring-root")
    body_key = _derive(b"", root, b"fm-keyring-body")
    wrapped = b"".join(reader + _seal_box(body_key, reader, root) for reader in readers)
    return head + wrapped + bindings.crypto_secretbox(plain, _NONCE, body_key)


def open_keyring(blob: bytes, box_private_key: bytes) -> dict[int, SealKey]:
    """The update keys by member index.

    The blob is written again from what was found and compared, so it opens for one recipient only if it
    opens for all. That each key is the committed one is for the caller to check, by its hash.

    Raises KeyringBroken when it is malformed or differs from what an honest peer writes, NotARecipient
    when it is a keyring for others.
    """
    count, readers, boxes, body = _split(blob)
    public = bindings.crypto_scalarmult_base(box_private_key)
    if public not in readers:
        raise NotARecipient(
            f"the keyring is wrapped for {len(readers)} box keys and {public.hex()[:16]}… is not one of them"
        )
    try:
        body_key = bindings.crypto_box_seal_open(boxes[readers.index(public)], public, box_private_key)
        plain = bindings.crypto_secretbox_open(body, _NONCE, body_key)
    except CryptoError:
        raise KeyringBroken(f"the keyring's entry for box key {public.hex()[:16]}… does not open") from None
    keys = {member: SealKey(key) for member, key in _ENTRY_KEY.iter_unpack(plain)}
    try:
        honest = len(keys) == count and seal_keyring(keys, readers) == blob
    except ValueError:
        honest = False
    if not honest:
        raise KeyringBroken("the keyring differs from the one that its own keys and recipients give")
    return keys


def _split(blob: bytes) -> tuple[int, list[bytes], list[bytes], bytes]:
    start = len(_MAGIC) + _COUNTS.size
    if len(blob) < start or not blob.startswith(_MAGIC):
        raise KeyringBroken(f"not a keyring: {len(blob)} bytes that begin with {blob[:8].hex()}")
    count, number = _COUNTS.unpack_from(blob, len(_MAGIC))
    entry = _BOX_KEY + _WRAPPED
    body = start + number * entry
    expected = body + bindings.crypto_secretbox_MACBYTES + count * _ENTRY_KEY.size
    if count > MAX_SEATS or number > MAX_SEATS or len(blob) != expected:
        raise KeyringBroken(
            f"a keyring of {count} keys for {number} recipients has {expected} bytes, got {len(blob)}"
        )
    entries = [blob[at : at + entry] for at in range(start, body, entry)]
    return count, [e[:_BOX_KEY] for e in entries], [e[_BOX_KEY:] for e in entries], blob[body:]


def _encode_keys(keys: Mapping[int, SealKey]) -> bytes:
    for member, key in keys.items():
        if not 0 <= member < MAX_SEATS:
            raise ValueError(f"member index {member} is not within 0 to {MAX_SEATS - 1}")
        if len(key) != KEY_BYTES:
            raise ValueError(f"the key of member {member} has {len(key)} bytes, expected {KEY_BYTES}")
    return b"".join(_ENTRY_KEY.pack(member, keys[member]) for member in sorted(keys))


def _seal_box(message: bytes, reader: bytes, root: bytes) -> bytes:
    """libsodium's sealed box, with an ephemeral key that derives from the root instead of chance."""
    secret = _derive(reader, root, b"fm-keyring-eph")
    public = bindings.crypto_scalarmult_base(secret)
    nonce = hashlib.blake2b(public + reader, digest_size=bindings.crypto_box_NONCEBYTES).digest()
    return public + bindings.crypto_box(message, nonce, reader, secret)


def _derive(message: bytes, key: bytes, purpose: bytes) -> bytes:
    return hashlib.blake2b(message, digest_size=32, key=key, person=purpose).digest()
