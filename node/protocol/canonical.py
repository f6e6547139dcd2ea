"""Canonical DAG-CBOR: the only serialisation of messages and documents, and the checks every decoder needs.

The only module that touches the DAG-CBOR library. https://ipld.io/specs/codecs/dag-cbor/spec/
"""

from __future__ import annotations

import hashlib
from typing import Any

import dag_cbor
from multiformats import CID

from folkmoot.contracts.types import Digest
from folkmoot.p2p.types import Cid

MAX_DOCUMENT = 1 << 20
"""Bytes of a document: the block size that every IPFS implementation accepts."""


class MalformedError(Exception):
    """Foreign bytes are not the canonical form of what they claim to be."""


def encode(value: object) -> bytes:
    """The one canonical encoding of `value` (maps, lists, text, bytes, integers, booleans, None, links)."""
    encoded = dag_cbor.encode(value)
    assert isinstance(encoded, bytes)
    return encoded


def decode(data: bytes, limit: int = MAX_DOCUMENT) -> Any:
    """Inverse of encode. Raises MalformedError for anything that encode would not have written."""
    if len(data) > limit:
        raise MalformedError(f"{len(data)} bytes where at most {limit} are allowed")
    try:
        value = dag_cbor.decode(data)
        again = dag_cbor.encode(value)
    except RecursionError:
        raise MalformedError("nested too deeply") from None
    except Exception as error:  # the library raises ValueError, KeyError and its own kinds
        raise MalformedError(
            f"not DAG-CBOR: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from None
    if again != data:
        raise MalformedError("not in canonical form")
    return value


def digest(data: bytes) -> Digest:
    """SHA-256."""
    return Digest(hashlib.sha256(data).digest())


def link(cid: Cid) -> CID:
    """A CID as an IPLD link, so that pinning a document pins what it names."""
    return CID.decode(cid)


def unlink(value: object, what: str) -> Cid:
    if not isinstance(value, CID) or value.version != 1:
        raise MalformedError(f"{what}: expected a link to a CIDv1, found {type(value).__name__}")
    return Cid(value.encode("base32"))


def integer(value: object, what: str, bits: int) -> int:
    """An unsigned integer below 2^bits."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << bits:
        raise MalformedError(f"{what}: expected an unsigned integer of {bits} bits, found {value!r:.80}")
    return value


def wide(value: object, what: str) -> int:
    """A uint256, which DAG-CBOR (64-bit integers) carries as 32 bytes, big endian."""
    return int.from_bytes(octets(value, what, 32), "big")


def octets(value: object, what: str, length: int | None = None, limit: int = MAX_DOCUMENT) -> bytes:
    """A byte string, of exactly `length` bytes where given."""
    if not isinstance(value, bytes):
        raise MalformedError(f"{what}: expected bytes, found {type(value).__name__}")
    if len(value) > limit or (length is not None and len(value) != length):
        raise MalformedError(f"{what}: expected {length or f'at most {limit}'} bytes, found {len(value)}")
    return value


def text(value: object, what: str, limit: int = 256) -> str:
    if not isinstance(value, str) or len(value.encode()) > limit:
        raise MalformedError(f"{what}: expected text of at most {limit} bytes, found {value!r:.80}")
    return value


def sequence(value: object, what: str, limit: int, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or len(value) > limit or (length is not None and len(value) != length):
        raise MalformedError(f"{what}: expected a list of {length or f'at most {limit}'} items")
    return value


def mapping(value: object, what: str, keys: frozenset[str]) -> dict[str, Any]:
    """A map with exactly these keys."""
    if not isinstance(value, dict) or set(value) != keys:
        found = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise MalformedError(f"{what}: expected the keys {sorted(keys)}, found {found!r:.200}")
    return value
