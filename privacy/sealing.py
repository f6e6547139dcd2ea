"""Sealing a file with a fresh symmetric key, streamed in constant memory.

The format is libsodium's secretstream (XChaCha20-Poly1305): a 24-byte header, then the content in pieces
of 64 KiB, each 17 bytes longer than its plaintext. The last piece, and no other, carries the final tag.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, NewType

from nacl import bindings
from nacl.exceptions import CryptoError

__all__ = [
    "KEY_BYTES",
    "PrivacyError",
    "SealBroken",
    "SealKey",
    "fresh_key",
    "key_hash",
    "open_sealed",
    "seal",
    "sealed_size",
]

SealKey = NewType("SealKey", bytes)
"""32 bytes that open one sealed file."""

KEY_BYTES: Final = bindings.crypto_secretstream_xchacha20poly1305_KEYBYTES
CHUNK: Final = 64 * 1024
"""Plaintext bytes of a piece; the last one may be shorter."""
_HEADER: Final = bindings.crypto_secretstream_xchacha20poly1305_HEADERBYTES
_OVERHEAD: Final = bindings.crypto_secretstream_xchacha20poly1305_ABYTES
_MESSAGE: Final = bindings.crypto_secretstream_xchacha20poly1305_TAG_MESSAGE
_FINAL: Final = bindings.crypto_secretstream_xchacha20poly1305_TAG_FINAL


class PrivacyError(Exception):
    """Base of every failure of the privacy room."""


class SealBroken(PrivacyError):
    """The bytes are not what the holder of this key sealed under this associated data.

    Whether it is raised, and with which message, depends on nothing but ciphertext, key and associated
    data, so every honest peer gives the same verdict.
    """


def fresh_key() -> SealKey:
    """A random key; one update, one key."""
    return SealKey(secrets.token_bytes(KEY_BYTES))


def key_hash(key: SealKey) -> bytes:
    """SHA-256 of the key, 32 bytes: what a commitment says of it.

    Poly1305 alone lets one ciphertext open under two keys; a hash fixed beforehand does not.
    """
    return hashlib.sha256(_checked(key)).digest()


def sealed_size(plain: int) -> int:
    """Bytes of the ciphertext of `plain` bytes."""
    if plain < 0:
        raise ValueError(f"a file has no negative size, got {plain}")
    pieces = max(1, -(-plain // CHUNK))
    return _HEADER + plain + pieces * _OVERHEAD


def seal(source: Path, target: Path, key: SealKey, associated: bytes) -> int:
    """Seal `source` into `target`; return the ciphertext's size in bytes.

    `associated` is bound to every piece but not stored: whoever opens must know it. `target` appears whole
    or not at all. Raises OSError when the disk refuses.
    """
    state = bindings.crypto_secretstream_xchacha20poly1305_state()
    header = bindings.crypto_secretstream_xchacha20poly1305_init_push(state, _checked(key))
    with source.open("rb") as plain, _replacing(target) as sealed:
        sealed.write(header)
        for piece, last in _pieces(plain, CHUNK):
            tag = _FINAL if last else _MESSAGE
            sealed.write(bindings.crypto_secretstream_xchacha20poly1305_push(state, piece, associated, tag))
        return sealed.tell()


def open_sealed(source: Path, target: Path, key: SealKey, associated: bytes) -> int:
    """Open `source` into `target`; return the plaintext's size in bytes.

    Raises SealBroken for another key, other associated data, and a file that was cut, extended, reordered
    or changed anywhere; `target` is then left as it was.
    """
    with source.open("rb") as sealed, _replacing(target) as plain:
        _open_stream(sealed, plain.write, _checked(key), associated)
        return plain.tell()


def _open_stream(sealed: BinaryIO, write: Callable[[bytes], object], key: bytes, associated: bytes) -> None:
    header = sealed.read(_HEADER)
    if len(header) < _HEADER:
        raise SealBroken(f"sealed file ends within its header: {len(header)} of {_HEADER} bytes")
    state = bindings.crypto_secretstream_xchacha20poly1305_state()
    bindings.crypto_secretstream_xchacha20poly1305_init_pull(state, header, key)
    for number, (piece, last) in enumerate(_pieces(sealed, CHUNK + _OVERHEAD)):
        if len(piece) < _OVERHEAD or (number > 0 and len(piece) == _OVERHEAD):
            raise SealBroken(f"sealed file is cut in piece {number}: {len(piece)} bytes")
        try:
            content, tag = bindings.crypto_secretstream_xchacha20poly1305_pull(state, piece, associated)
        except CryptoError:
            raise SealBroken(
                f"piece {number} of the sealed file does not open: wrong key, wrong context, or changed bytes"
            ) from None
        if tag != (_FINAL if last else _MESSAGE):
            raise SealBroken(f"piece {number} of the sealed file has tag {tag}: it was cut or extended")
        write(content)


def _pieces(stream: BinaryIO, size: int) -> Iterator[tuple[bytes, bool]]:
    """Pieces of `size` bytes with a mark on the last; an empty stream is one empty last piece."""
    piece = stream.read(size)
    while True:
        following = stream.read(size) if len(piece) == size else b""
        yield piece, not following
        if not following:
            return
        piece = following


def _checked(key: SealKey) -> bytes:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a sealing key has {KEY_BYTES} bytes, got {len(key)}")
    return bytes(key)


@contextmanager
def _replacing(target: Path) -> Iterator[BinaryIO]:
    """A file beside `target` that takes its place if the block ends well and vanishes if it does not."""
    part = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
    try:
        with part.open("xb") as stream:
            yield stream
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
