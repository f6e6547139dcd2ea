"""The stream on which members hand blobs to each other: its frames, and the side that serves.

A stream carries one request after another, each answered in full before the next is read:

    request  kind (1 byte), CID (36), offset (8), length (8)
    answer   status (1 byte), length of the body (8), body

ROOT asks for the block that the CID names, LEAVES for the digests of its leaves, CONTENT for a range that
starts at a leaf. Integers are big endian. Nothing that arrives is trusted before it was hashed.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import trio

from folkmoot.p2p.cid import Codec, cid_from_bytes, codec_of, to_bytes
from folkmoot.p2p.store import DiskStore
from folkmoot.p2p.types import Cid, InvalidCid, P2PError, PeerId
from folkmoot.p2p.unixfs import IPFS

__all__ = [
    "MAX_SEGMENT",
    "PROTOCOL",
    "BlobServer",
    "ByteStream",
    "Kind",
    "MalformedAnswer",
    "NotHere",
    "Request",
    "ask",
]

PROTOCOL = "/folkmoot/blob/1"
MAX_SEGMENT = 64 * IPFS.leaf
"""Bytes of one CONTENT request, 16 MiB."""

_PIECE = 1 << 20
_REQUEST = struct.Struct(">B36sQQ")
_ANSWER = struct.Struct(">BQ")
_HERE, _NOT_HERE, _REFUSED = range(3)


class ByteStream(Protocol):
    """What of a stream is used; `folkmoot.p2p.streams.Stream` is one."""

    async def read_exactly(self, size: int) -> bytes: ...

    async def write(self, content: bytes | bytearray | memoryview) -> None: ...


class MalformedAnswer(P2PError):
    """The provider answered what no honest one would."""


class NotHere(P2PError):
    """The provider does not hold the blob, so far."""


class Kind(IntEnum):
    ROOT = 1
    LEAVES = 2
    CONTENT = 3


@dataclass(frozen=True, slots=True)
class Request:
    """One question. `offset` and `length` count bytes of the content and are 0 unless kind is CONTENT."""

    kind: Kind
    cid: Cid
    offset: int = 0
    length: int = 0

    def encode(self) -> bytes:
        return _REQUEST.pack(self.kind, to_bytes(self.cid), self.offset, self.length)

    @staticmethod
    def decode(frame: bytes) -> Request:
        """Raises MalformedAnswer, InvalidCid."""
        kind, binary, offset, length = _REQUEST.unpack(frame)
        if kind not in Kind.__members__.values():
            raise MalformedAnswer(f"kind {kind} does not exist")
        request = Request(Kind(kind), cid_from_bytes(binary), offset, length)
        if request.kind is Kind.CONTENT:
            if offset % IPFS.leaf or not 0 < length <= MAX_SEGMENT:
                raise MalformedAnswer(f"the range of {length} bytes at {offset} is not a run of leaves")
        elif offset or length:
            raise MalformedAnswer(f"a request of kind {request.kind.name} has no range")
        return request


async def ask(stream: ByteStream, request: Request, most: int) -> int:
    """Send a request and return the length of the body that follows, at most `most` bytes.

    Raises NotHere, MalformedAnswer, and what the stream raises. The caller sets the deadline.
    """
    await stream.write(request.encode())
    status, length = _ANSWER.unpack(await stream.read_exactly(_ANSWER.size))
    if (status, length) == (_NOT_HERE, 0):
        raise NotHere(f"the provider does not hold {request.cid}")
    if status != _HERE:
        raise MalformedAnswer(f"the provider answered a valid request with status {status}")
    if length > most:
        raise MalformedAnswer(f"the provider announced {length} bytes where at most {most} are due")
    return int(length)


class BlobServer:
    """Answers requests from the store, and from nothing but the store.

    `idle` and `stall` are seconds: how long a peer may keep a stream without asking, and how long it may
    take over one piece (1 MiB) of an answer.
    """

    def __init__(
        self, store: DiskStore, disk: trio.CapacityLimiter, idle: float = 120.0, stall: float = 30.0
    ) -> None:
        self._store, self._disk = store, disk
        self._idle, self._stall = idle, stall

    async def serve(self, stream: ByteStream, peer: PeerId) -> None:
        """Answer until the peer closes, is idle for too long, or sends a malformed request.

        Raises what the stream raises, and trio.TooSlowError.
        """
        while True:
            with trio.fail_after(self._idle):
                frame = await stream.read_exactly(_REQUEST.size)
            try:
                request = Request.decode(frame)
            except (MalformedAnswer, InvalidCid):
                await self._write(stream, _ANSWER.pack(_REFUSED, 0))
                return
            if request.kind is Kind.CONTENT:
                await self._send_content(stream, request)
            else:
                body = await trio.to_thread.run_sync(self._body, request, limiter=self._disk)
                if body is None:
                    await self._write(stream, _ANSWER.pack(_NOT_HERE, 0))
                else:
                    await self._send(stream, body)

    def _body(self, request: Request) -> bytes | None:
        if request.kind is Kind.ROOT:
            return self._store.find_block(request.cid)
        leaves = self._store.leaves(request.cid) if codec_of(request.cid) is Codec.DAG_PB else None
        return None if leaves is None else leaves.digests

    async def _send(self, stream: ByteStream, body: bytes) -> None:
        await self._write(stream, _ANSWER.pack(_HERE, len(body)))
        view = memoryview(body)
        for start in range(0, len(view), _PIECE):
            await self._write(stream, view[start : start + _PIECE])

    async def _send_content(self, stream: ByteStream, request: Request) -> None:
        """Send the range, cut at the content's end; the file stays open, so its removal does no harm."""
        try:
            path = self._store.path(request.cid)
            descriptor = -1 if path is None else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            descriptor = -1
        if descriptor < 0:
            await self._write(stream, _ANSWER.pack(_NOT_HERE, 0))
            return
        try:
            left = max(0, min(request.length, os.fstat(descriptor).st_size - request.offset))
            await self._write(stream, _ANSWER.pack(_HERE, left))
            offset = request.offset
            while left:
                piece = await trio.to_thread.run_sync(
                    os.pread, descriptor, min(_PIECE, left), offset, limiter=self._disk
                )
                if not piece:
                    raise OSError(f"the file of {request.cid} ended early")
                await self._write(stream, piece)
                offset, left = offset + len(piece), left - len(piece)
        finally:
            os.close(descriptor)

    async def _write(self, stream: ByteStream, content: bytes | memoryview) -> None:
        with trio.fail_after(self._stall):
            await stream.write(content)
