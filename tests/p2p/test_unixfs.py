"""The same bytes give the CID that `ipfs add --cid-version=1 --raw-leaves` gives."""

import hashlib
import io
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.p2p.cid import Codec, cid_of_block, cid_of_digest
from folkmoot.p2p.unixfs import (
    IPFS,
    ForeignLayout,
    Layout,
    Leaves,
    cid_of_bytes,
    cid_of_file,
    hash_leaves,
    open_node,
    open_root,
    root_cid,
    tree,
)

LEAF = IPFS.leaf
TINY = Layout(leaf=2, links=3)

GOLDEN = {
    0: "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
    1: "bafkreidogqfzz75tpkmjzjke425xqcrmpcib2p5tg44hnbirumdbpl5adu",
    LEAF - 1: "bafkreic6iqyxuiad5dem4bzgyy336yoi6tegdqa4e5vt24gq3btool5cra",
    LEAF: "bafkreiekhhjkxu4ztk3tyng3er3ijhg56mb44oe3gwbgquhzu4afrg2ksa",
    LEAF + 1: "bafybeidf7ins7dbwk2zrpiv7k3tzp65itaxindoduggdnvrtad2es6lj5y",
    173 * LEAF: "bafybeidlemw6fwg2l7ukgswxs4tozthswpp7ju23n5a62n5wxweoibyx5m",
    174 * LEAF - 1: "bafybeiepazaqfznzkyzjcfgq2ei277z5fd2ip2iwtarijxqn4aijo2s4ma",
    174 * LEAF: "bafybeielwmypj5ttqwa4oxc3lfztoqxehmn5kkicdfsroyrpqhllqhsigm",
    174 * LEAF + 1: "bafybeibv2ywydxvu2qkwds5bbh6dlmmnodqeskch3b46em7qoes5ekhzfm",
    175 * LEAF: "bafybeiacfzatj2nthnalpkr7s3y7m6uis6gyriqed6jwxbyeiumiubegu4",
    174 * 2 * LEAF: "bafybeicxzqdvoogn3j56joswt5l4ettjrgqpfltxufpzib4gxmiwmqpcvq",
    174 * 2 * LEAF + 1: "bafybeigjy6arwkoqxqziwzcr5mnjsp6pqsvfobt4j5p43ei3zkmhl4aidq",
    174 * 174 * LEAF + 1: "bafybeigcbkbho7depiyh3chfcjj6tdj6rhk3ki2qzzr2cz3id72hkmi34e",
}
"""Root CIDs that npm `ipfs-unixfs-importer` 17.1.1 gives files of `striped` bytes, by size."""


def striped(size: int) -> Leaves:
    """The leaves of a file whose leaf k repeats the byte k mod 251, without the file."""
    whole = [hashlib.sha256(bytes([k]) * LEAF).digest() for k in range(min(251, size // LEAF + 1))]
    count = IPFS.leaves(size)
    last = hashlib.sha256(bytes([(count - 1) % 251]) * (size - LEAF * (count - 1))).digest()
    return Leaves(b"".join(whole[k % 251] for k in range(count - 1)) + last, size)


@pytest.mark.parametrize("size", GOLDEN)
def test_root_cids_equal_those_of_the_independent_importer(size: int) -> None:
    assert root_cid(striped(size)) == GOLDEN[size]


@pytest.mark.parametrize("size", [0, 1, LEAF - 1, LEAF, LEAF + 1, 3 * LEAF + 5])
def test_a_file_and_its_bytes_have_the_cid_of_their_leaves(tmp_path: Path, size: int) -> None:
    content = b"".join(bytes([k]) * LEAF for k in range(size // LEAF + 1))[:size]
    file = tmp_path / "content"
    file.write_bytes(content)
    assert cid_of_file(file) == cid_of_bytes(content) == root_cid(striped(size))


class Trickle(io.BytesIO):
    """A source that hands over one byte at a time."""

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        return super().readinto(buffer[:1])


@given(content=st.binary(max_size=100))
def test_short_reads_do_not_move_the_borders_of_leaves(content: bytes) -> None:
    assert hash_leaves(Trickle(content), TINY) == hash_leaves(io.BytesIO(content), TINY)


@given(content=st.binary(min_size=3, max_size=200))
def test_the_tree_walked_from_its_root_spells_the_leaves_in_order(content: bytes) -> None:
    leaves = hash_leaves(io.BytesIO(content), TINY)
    blocks = dict(tree(leaves, TINY))
    *_, (root, _) = tree(leaves, TINY)
    found = bytearray()

    def walk(digest: bytes, height: int, size: int) -> None:
        if height == 0:
            found.extend(digest)
            return
        block = blocks[digest]
        assert hashlib.sha256(block).digest() == digest
        for link, below in zip(
            open_node(block, height, size, TINY).links, TINY.children(height, size), strict=True
        ):
            walk(link, height - 1, below)

    top = open_root(blocks[root], TINY)
    walk(root, top.height, top.size)
    assert (bytes(found), top.size) == (leaves.digests, len(content))
    assert root_cid(leaves, TINY) == cid_of_digest(Codec.DAG_PB, root)


@given(data=st.data(), size=st.integers(3, 200))
def test_a_changed_byte_of_a_node_is_another_link_or_a_foreign_layout(data: st.DataObject, size: int) -> None:
    *_, (_, block) = tree(hash_leaves(io.BytesIO(bytes(size)), TINY), TINY)
    at = data.draw(st.integers(0, len(block) - 1))
    changed = block[:at] + bytes([block[at] ^ data.draw(st.integers(1, 255))]) + block[at + 1 :]
    node = open_root(block, TINY)
    try:
        other = open_root(changed, TINY)
    except ForeignLayout:
        return
    assert (other.height, other.size) == (node.height, node.size)
    assert other.links != node.links


@given(block=st.binary(max_size=300))
def test_arbitrary_bytes_are_a_foreign_layout_or_a_node_that_encodes_to_them(block: bytes) -> None:
    for prefix in (b"", b"\x12\x31", b"\x0a\x08\x08\x02\x18"):
        with pytest.raises(ForeignLayout):
            open_root(prefix + block)


def test_a_root_that_claims_an_absurd_size_is_foreign() -> None:
    for size in (b"\x00", b"\xff" * 9 + b"\x01", b"\xff" * 40):
        with pytest.raises(ForeignLayout):
            open_root(b"\x0a" + bytes([3 + len(size)]) + b"\x08\x02\x18" + size)


def test_sizes_that_differ_have_cids_that_differ() -> None:
    roots = [root_cid(striped(size)) for size in GOLDEN]
    assert all(left != right for left, right in pairwise(roots))
    assert cid_of_block(Codec.RAW, b"") == GOLDEN[0]
