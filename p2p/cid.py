"""CIDs of the blobs: version 1, base32 text, sha2-256, one of three codecs. Everything else is refused.

One digest and codec have exactly one text here, so that texts may be compared and used as file names.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from enum import IntEnum

from folkmoot.p2p.types import Cid, InvalidCid

__all__ = [
    "DIGEST_SIZE",
    "Codec",
    "cid_from_bytes",
    "cid_of_block",
    "cid_of_digest",
    "codec_of",
    "digest_of",
    "to_bytes",
]

DIGEST_SIZE = 32
"""Bytes of a sha2-256 digest."""

_VERSION = 1
_SHA2_256 = 0x12
_BINARY_SIZE = 4 + DIGEST_SIZE
_TEXT_SIZE = 1 + -(-_BINARY_SIZE * 8 // 5)


class Codec(IntEnum):
    """Multicodec codes of the block formats in use (multiformats table)."""

    RAW = 0x55
    DAG_PB = 0x70
    DAG_CBOR = 0x71


def cid_of_digest(codec: Codec, digest: bytes) -> Cid:
    """The CID text of a 32-byte sha2-256 digest. Raises InvalidCid on another length."""
    if len(digest) != DIGEST_SIZE:
        raise InvalidCid(f"a sha2-256 digest has {DIGEST_SIZE} bytes, found {len(digest)}")
    binary = bytes((_VERSION, codec, _SHA2_256, DIGEST_SIZE)) + digest
    return Cid("b" + base64.b32encode(binary).decode().rstrip("=").lower())


def cid_of_block(codec: Codec, block: bytes | memoryview) -> Cid:
    """The CID of one block."""
    return cid_of_digest(codec, hashlib.sha256(block).digest())


def digest_of(cid: str) -> bytes:
    """The sha2-256 digest, 32 bytes, that a CID names. Raises InvalidCid."""
    return _parse(cid)[1]


def codec_of(cid: str) -> Codec:
    """The codec of the block that a CID names. Raises InvalidCid."""
    return _parse(cid)[0]


def to_bytes(cid: str) -> bytes:
    """The 36 bytes of the binary form. Raises InvalidCid."""
    codec, digest = _parse(cid)
    return bytes((_VERSION, codec, _SHA2_256, DIGEST_SIZE)) + digest


def cid_from_bytes(binary: bytes) -> Cid:
    """The text of a binary CID. Raises InvalidCid unless it is one of ours."""
    return cid_of_digest(*_parse_binary(binary, f"the binary CID {binary[:64].hex()!r}"))


def _parse(cid: str) -> tuple[Codec, bytes]:
    if not isinstance(cid, str):
        raise InvalidCid(f"a CID is text, found {type(cid).__name__}")
    name = f"the CID {cid[:80]!r}"
    if len(cid) != _TEXT_SIZE or not cid.startswith("b"):
        raise InvalidCid(
            f"{name} is not version 1 in base32: expected {_TEXT_SIZE} characters that start with 'b'"
        )
    try:
        binary = base64.b32decode(cid[1:].upper().encode("ascii") + b"=" * (-(len(cid) - 1) % 8))
    except (binascii.Error, UnicodeEncodeError):
        raise InvalidCid(f"{name} holds a character outside base32") from None
    parsed = _parse_binary(binary, name)
    if cid_of_digest(*parsed) != cid:
        raise InvalidCid(f"{name} is not in its only valid form (lower case, unused bits zero)")
    return parsed


def _parse_binary(binary: bytes, name: str) -> tuple[Codec, bytes]:
    if len(binary) != _BINARY_SIZE:
        raise InvalidCid(f"{name} has {len(binary)} bytes, expected {_BINARY_SIZE}")
    version, code, multihash, length = binary[:4]
    if (version, multihash, length) != (_VERSION, _SHA2_256, DIGEST_SIZE):
        raise InvalidCid(f"{name} is not version 1 with sha2-256")
    try:
        codec = Codec(code)
    except ValueError:
        raise InvalidCid(f"{name} has codec 0x{code:02x}, expected raw, dag-pb or dag-cbor") from None
    return codec, binary[4:]
