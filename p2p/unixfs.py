"""UnixFS files as a pure function of bytes: leaves, balanced tree of dag-pb nodes, root CID.

The layout is that of `ipfs add --cid-version=1 --raw-leaves`: raw leaves of 256 KiB, 174 links a node.
Of a layout everything but the digests follows from the file's size, so a node is checked by writing it
again and comparing. Sources: UnixFS and DAG-PB specifications, go-unixfs `importer/balanced`.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from folkmoot.p2p.cid import DIGEST_SIZE, Codec, cid_of_digest
from folkmoot.p2p.types import BlobUnavailable, Cid

__all__ = [
    "IPFS",
    "ForeignLayout",
    "Layout",
    "Leaves",
    "Node",
    "Reader",
    "cid_of_bytes",
    "cid_of_file",
    "hash_leaves",
    "open_node",
    "open_root",
    "root_cid",
    "tree",
]

_FILE = b"\x08\x02"
_MAX_SIZE = 1 << 63


class ForeignLayout(BlobUnavailable):
    """The CID names a dag-pb node that is not a file in the layout of this room: no provider can help."""


class Reader(Protocol):
    """What `hash_leaves` reads from: a binary file, or anything else that fills a buffer."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file is cut: bytes of a leaf and links of a node."""

    leaf: int = 262_144
    links: int = 174

    def leaves(self, size: int) -> int:
        """Number of leaves of a file of `size` bytes; an empty file has one empty leaf."""
        return max(1, -(-size // self.leaf))

    def height(self, size: int) -> int:
        """Levels of nodes above the leaves; 0 when the file is its only leaf."""
        height, reach = 0, 1
        while reach < self.leaves(size):
            height, reach = height + 1, reach * self.links
        return height

    def children(self, height: int, size: int) -> tuple[int, ...]:
        """Bytes below each link of a node of `height` >= 1 over `size` bytes."""
        span: int = self.leaf * self.links ** (height - 1)
        full, rest = divmod(size, span)
        return (span,) * full + ((rest,) if rest else ())


IPFS = Layout()
"""The layout of `ipfs add --cid-version=1 --raw-leaves`."""


@dataclass(frozen=True, slots=True)
class Leaves:
    """The digests of a file's leaves, 32 bytes each, one after another, and the file's size in bytes."""

    digests: bytes
    size: int

    def digest(self, index: int) -> bytes:
        return self.digests[index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE]


@dataclass(frozen=True, slots=True)
class Node:
    """One checked node: its height above the leaves, the bytes below it, the digests that it links."""

    height: int
    size: int
    links: tuple[bytes, ...]


def hash_leaves(source: Reader, layout: Layout = IPFS) -> Leaves:
    """Read `source` to its end and hash its leaves. Memory: one leaf, and 32 bytes for each leaf."""
    buffer = bytearray(layout.leaf)
    view = memoryview(buffer)
    digests, size = bytearray(), 0
    while True:
        filled = _fill(source, view)
        if filled == 0 and size:
            break
        digests += hashlib.sha256(view[:filled]).digest()
        size += filled
        if filled < layout.leaf:
            break
    return Leaves(bytes(digests), size)


def tree(leaves: Leaves, layout: Layout = IPFS) -> Iterator[tuple[bytes, bytes]]:
    """Digest and bytes of every dag-pb node, children before parents, the root last; none for one leaf."""
    level = [leaves.digest(i) for i in range(layout.leaves(leaves.size))]
    sizes = [layout.leaf] * (len(level) - 1) + [leaves.size - layout.leaf * (len(level) - 1)]
    for height in range(1, layout.height(leaves.size) + 1):
        parents, parent_sizes = [], []
        for start in range(0, len(level), layout.links):
            size = sum(sizes[start : start + layout.links])
            block = _encode(layout, Node(height, size, tuple(level[start : start + layout.links])))
            digest = hashlib.sha256(block).digest()
            yield digest, block
            parents.append(digest)
            parent_sizes.append(size)
        level, sizes = parents, parent_sizes


def root_cid(leaves: Leaves, layout: Layout = IPFS) -> Cid:
    """The CID of the file with these leaves."""
    root = cid_of_digest(Codec.RAW, leaves.digest(0))
    for digest, _ in tree(leaves, layout):
        root = cid_of_digest(Codec.DAG_PB, digest)
    return root


def cid_of_file(path: Path, layout: Layout = IPFS) -> Cid:
    """The CID that `ipfs add --cid-version=1 --raw-leaves` gives a file. Raises OSError."""
    with path.open("rb", buffering=0) as source:
        return root_cid(hash_leaves(source, layout), layout)


def cid_of_bytes(content: bytes, layout: Layout = IPFS) -> Cid:
    """The CID that a file with this content has."""
    return root_cid(hash_leaves(io.BytesIO(content), layout), layout)


def open_root(block: bytes, layout: Layout = IPFS) -> Node:
    """Read a root node whose bytes were hashed already. Raises ForeignLayout."""
    size = _claimed_size(block)
    height = layout.height(size) if size < _MAX_SIZE else 0
    if height == 0:
        raise ForeignLayout("the root node is not a UnixFS file of more than one leaf")
    return open_node(block, height, size, layout)


def open_node(block: bytes, height: int, size: int, layout: Layout = IPFS) -> Node:
    """Read the node of `height` >= 1 over `size` bytes. Raises ForeignLayout when it is anything else."""
    children = len(layout.children(height, size))
    links, at = [], 0
    for _ in range(children):
        if at + 6 > len(block):
            break
        # Of a PBLink only its length byte and Tsize vary: 12 <len> 0a 24 <36-byte CID> 12 00 18 <tsize>.
        links.append(block[at + 8 : at + 8 + DIGEST_SIZE])
        at += 2 + block[at + 1]
    node = Node(height, size, tuple(links))
    if len(links) != children or children == 0 or _encode(layout, node) != block:
        raise ForeignLayout(
            f"the node over {size} bytes is not what `ipfs add --cid-version=1 --raw-leaves` writes;"
            " import the file again with these options"
        )
    return node


def _encode(layout: Layout, node: Node) -> bytes:
    codec = Codec.RAW if node.height == 1 else Codec.DAG_PB
    sizes = layout.children(node.height, node.size)
    out = bytearray()
    for digest, size in zip(node.links, sizes, strict=True):
        cid = bytes((1, codec, 0x12, DIGEST_SIZE)) + digest
        link = (
            b"\x0a"
            + _varint(len(cid))
            + cid
            + b"\x12\x00\x18"
            + _varint(_total_size(layout, node.height - 1, size))
        )
        out += b"\x12" + _varint(len(link)) + link
    data = _FILE + b"\x18" + _varint(node.size) + b"".join(b"\x20" + _varint(size) for size in sizes)
    return bytes(out + b"\x0a" + _varint(len(data)) + data)


@lru_cache(maxsize=4096)
def _total_size(layout: Layout, height: int, size: int) -> int:
    """Tsize: bytes of all blocks of a subtree. Digests have a fixed length, so the size decides."""
    if height == 0:
        return size
    sizes = layout.children(height, size)
    block = _encode(layout, Node(height, size, (bytes(DIGEST_SIZE),) * len(sizes)))
    return len(block) + sum(_total_size(layout, height - 1, child) for child in sizes)


def _claimed_size(block: bytes) -> int:
    """The UnixFS filesize of a dag-pb block; -1 where there is none."""
    at = 0
    while at < len(block) and block[at] == 0x12:
        length, start = _read_varint(block, at + 1)
        at = start + length
    if at >= len(block) or block[at] != 0x0A:
        return -1
    _, start = _read_varint(block, at + 1)
    if block[start : start + 3] != _FILE + b"\x18":
        return -1
    return _read_varint(block, start + 3)[0]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(block: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(block) and shift < 70:
        byte = block[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            break
    return value, at


def _fill(source: Reader, view: memoryview) -> int:
    filled = 0
    while filled < len(view):
        got = source.readinto(view[filled:])
        if not got:
            break
        filled += got
    return filled
