"""Blobs between hosts on loopback: striped, resumed, and never believed before they were hashed."""

import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.p2p.bulk import MAX_SEGMENT, PROTOCOL, BlobServer, Kind, MalformedAnswer, Request
from folkmoot.p2p.cid import Codec, cid_of_block, cid_of_digest
from folkmoot.p2p.fetching import Fault, FetchSettings
from folkmoot.p2p.gate import MemberGate
from folkmoot.p2p.host import Host, open_host
from folkmoot.p2p.identity import peer_id_of_seed
from folkmoot.p2p.network_blobs import NetworkBlobStore
from folkmoot.p2p.store import DiskStore
from folkmoot.p2p.streams import Stream
from folkmoot.p2p.types import BlobTooLarge, BlobUnavailable, Cid, InvalidCid, PeerId, StoreFull
from folkmoot.p2p.unixfs import IPFS, ForeignLayout, cid_of_bytes, hash_leaves

LEAF = IPFS.leaf
QUICK = FetchSettings(patience=15.0, stall=2.0, widen=0.4, retry=0.1, overtake=0.1)


@dataclass(frozen=True)
class Peer:
    """One host with its store."""

    host: Host
    disk: DiskStore
    blobs: NetworkBlobStore

    @property
    def id(self) -> PeerId:
        return self.host.peer_id


@asynccontextmanager
async def federation(folder: Path, count: int, settings: FetchSettings = QUICK) -> AsyncIterator[list[Peer]]:
    """Hosts that know each other and are connected."""
    seeds = [bytes([k + 1]) * 32 for k in range(count)]
    async with AsyncExitStack() as stack:
        gates = [MemberGate({peer_id_of_seed(seed): () for seed in seeds}) for _ in seeds]
        peers = []
        for k, (seed, gate) in enumerate(zip(seeds, gates, strict=True)):
            host = await stack.enter_async_context(open_host(seed, ["/ip4/127.0.0.1/tcp/0"], gate))
            disk = DiskStore(folder / f"store-{k}", 1 << 32)
            stack.callback(disk.close)
            peers.append(Peer(host, disk, NetworkBlobStore(host, disk, settings)))
        for gate in gates:
            gate.update({peer.id: peer.host.addresses for peer in peers})
        for peer in peers:
            for other in peers:
                if peer is not other:
                    await peer.host.wait_connected(other.id)
        yield peers


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(60):
            await scenario()

    trio.run(bounded)


def a_file(folder: Path, size: int, seed: int = 7) -> Path:
    file = folder / f"{seed}-{size}"
    file.write_bytes(random.Random(seed).randbytes(size))
    return file


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("size", [0, 1, LEAF, LEAF + 1, 9 * LEAF + 17])
def test_a_blob_travels_whole_whatever_its_size(tmp_path: Path, size: int) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, 2) as (alice, bob):
            file = a_file(tmp_path, size)
            cid = await alice.blobs.put(file)
            path = await bob.blobs.fetch(cid, size, [alice.id])
            assert sha(path) == sha(file)
            assert path == bob.blobs.path(cid)
            bob.disk.verify(cid)

    run(scenario)


def test_a_document_travels_and_a_missing_one_is_waited_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, 2) as (alice, bob), trio.open_nursery() as nursery:
            content = b"\xa1aa\x01"
            cid = cid_of_block(Codec.DAG_CBOR, content)
            for _ in range(3):
                nursery.start_soon(bob.blobs.fetch, cid, 100, [])
            await trio.sleep(0.5)
            assert await alice.blobs.put_document(content) == cid
            assert (await bob.blobs.fetch(cid, 100, [alice.id])).read_bytes() == content

    run(scenario)


def test_a_blob_is_striped_over_all_that_hold_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, 4) as (*holders, dave):
            file = a_file(tmp_path, 24 * 1024 * 1024 + 5)
            for holder in holders:
                cid = await holder.blobs.put(file)
            path = await dave.blobs.fetch(cid, 1 << 30, [holder.id for holder in holders])
            assert sha(path) == sha(file)
            served = [holder.host.traffic.protocol_sent[PROTOCOL] for holder in holders]
            assert min(served) > 2 * 1024 * 1024
            assert sum(served) < 1.5 * file.stat().st_size

    run(scenario)


def test_nobody_that_has_it_is_an_error_within_the_patience(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, 2, replace(QUICK, patience=1.0)) as (alice, bob):
            began = trio.current_time()
            missing = cid_of_digest(Codec.DAG_PB, bytes(32))
            with pytest.raises(BlobUnavailable, match="does not hold the blob"):
                await bob.blobs.fetch(missing, 100, [alice.id])
            assert trio.current_time() - began < 2
            with pytest.raises(InvalidCid):
                await bob.blobs.fetch(Cid("../../secret"), 100, [alice.id])

    run(scenario)


def test_the_limit_is_checked_before_memory_or_disk_is_taken(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, 2) as (alice, bob):
            file = a_file(tmp_path, 3 * LEAF)
            cid = await alice.blobs.put(file)
            with pytest.raises(BlobTooLarge, match=f"{3 * LEAF} bytes, the limit is {3 * LEAF - 1}"):
                await bob.blobs.fetch(cid, 3 * LEAF - 1, [alice.id])
            vast = forge_root(1 << 40)
            answer_with(alice.host, vast)
            with pytest.raises(BlobTooLarge, match=str(1 << 40)):
                await bob.blobs.fetch(cid_of_block(Codec.DAG_PB, vast), 1 << 30, [alice.id])
            assert not list((bob.disk.root / "incoming").iterdir())
            assert bob.disk.used == 0

    run(scenario)


def forge_root(size: int) -> bytes:
    """A well-formed root node over `size` bytes whose links lead nowhere."""
    from folkmoot.p2p.unixfs import Node, _encode  # type: ignore[attr-defined]

    height = IPFS.height(size)
    return _encode(IPFS, Node(height, size, (bytes(32),) * len(IPFS.children(height, size))))


def answer_with(host: Host, body: bytes, length: int | None = None) -> None:
    """Make a host answer every request with the same body, announced as `length` bytes."""

    async def lie(stream: Stream, _: PeerId) -> None:
        while True:
            await stream.read_exactly(53)
            await stream.write(b"\0" + (len(body) if length is None else length).to_bytes(8, "big") + body)

    host.set_stream_handler(PROTOCOL, lie)


def test_a_foreign_layout_is_refused_at_once_and_for_all(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, 2) as (alice, bob):
            block = b"\x0a\x02\x08\x01"
            answer_with(alice.host, block)
            began = trio.current_time()
            with pytest.raises(ForeignLayout):
                await bob.blobs.fetch(cid_of_block(Codec.DAG_PB, block), 100, [alice.id])
            assert trio.current_time() - began < 1

    run(scenario)


@pytest.mark.parametrize("claimed", [1 << 40, 5, 0])
def test_a_liar_is_dropped_by_name_and_an_honest_peer_takes_over(tmp_path: Path, claimed: int) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, 3) as (alice, mallory, bob):
            file = a_file(tmp_path, 5 * LEAF)
            cid = await alice.blobs.put(file)
            answer_with(mallory.host, b"lies!"[:claimed], claimed)
            path = await bob.blobs.fetch(cid, 1 << 30, [mallory.id])
            assert sha(path) == sha(file)
            assert bob.blobs.lies == {mallory.id: 1}
            assert {(d.peer, d.fault) for d in bob.blobs.dropped} == {(mallory.id, Fault.LIED)}

    run(scenario)


class Corrupting(BlobServer):
    """Serves the truth about the tree and one wrong byte in every leaf."""

    async def _write(self, stream: object, content: bytes | memoryview) -> None:
        if len(content) > 100_000:
            content = b"\xff" + bytes(content[1:])
        await super()._write(stream, content)  # type: ignore[arg-type]


class Stalling(BlobServer):
    """Serves the tree and then half a leaf."""

    async def _write(self, stream: object, content: bytes | memoryview) -> None:
        if len(content) > 100_000:
            await super()._write(stream, content[: LEAF // 2])  # type: ignore[arg-type]
            await trio.sleep_forever()
        await super()._write(stream, content)  # type: ignore[arg-type]


def test_providers_that_race_for_the_last_leaf_do_no_harm(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, 4, replace(QUICK, overtake=0.0)) as (*holders, dave):
            for seed in range(6):
                file = a_file(tmp_path, 6 * LEAF + seed, seed)
                for holder in holders:
                    cid = await holder.blobs.put(file)
                await dave.blobs.fetch(cid, 1 << 30, [holder.id for holder in holders])
                dave.disk.verify(cid)
            assert list((dave.disk.root / "incoming").iterdir()) == []
            assert dave.disk.used == sum(6 * LEAF + seed for seed in range(6))

    run(scenario)


class Slow(BlobServer):
    """Serves the truth, a leaf at a time with a pause before each."""

    async def _write(self, stream: object, content: bytes | memoryview) -> None:
        for start in range(0, len(content), LEAF):
            await trio.sleep(0.4 if len(content) > 100_000 else 0)
            await super()._write(stream, content[start : start + LEAF])  # type: ignore[arg-type]


class Withholding(BlobServer):
    """Shows the tree of a blob and then denies its content."""

    async def _send_content(self, stream: object, request: Request) -> None:
        await self._write(stream, b"\1" + bytes(8))  # type: ignore[arg-type]


@pytest.mark.parametrize(("server", "lies"), [(Corrupting, 1), (Stalling, 0), (Withholding, 0)])
def test_wrong_leaves_and_silence_cost_the_provider_its_turn(
    tmp_path: Path, server: type[BlobServer], lies: int
) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, 3) as (alice, mallory, bob):
            file = a_file(tmp_path, 24 * LEAF)
            for peer in (alice, mallory):
                cid = await peer.blobs.put(file)
            mallory.host.set_stream_handler(PROTOCOL, server(mallory.disk, trio.CapacityLimiter(2)).serve)
            path = await bob.blobs.fetch(cid, 1 << 30, [mallory.id, alice.id])
            assert sha(path) == sha(file)
            assert bob.blobs.lies[mallory.id] == lies
            assert all("does not hash" in d.reason for d in bob.blobs.dropped if d.fault is Fault.LIED)

    run(scenario)


def test_a_provider_below_the_least_rate_leaves_its_segment_to_others(tmp_path: Path) -> None:
    async def scenario() -> None:
        impatient = replace(QUICK, least_rate=4e6, overtake=30.0)
        async with federation(tmp_path, 3, impatient) as (mallory, alice, bob):
            file = a_file(tmp_path, 60 * LEAF)
            for peer in (mallory, alice):
                cid = await peer.blobs.put(file)
            mallory.host.set_stream_handler(PROTOCOL, Slow(mallory.disk, trio.CapacityLimiter(2)).serve)
            path = await bob.blobs.fetch(cid, 1 << 30, [mallory.id, alice.id])
            assert sha(path) == sha(file)
            assert {(d.peer, d.fault) for d in bob.blobs.dropped} == {(mallory.id, Fault.SLOW)}
            assert bob.blobs.lies == {}

    run(scenario)


def test_a_blob_that_appears_here_ends_its_transfer(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, 2) as (alice, bob), trio.open_nursery() as nursery:
            file = a_file(tmp_path, 2 * LEAF)
            nursery.start_soon(bob.blobs.fetch, cid_of_bytes(file.read_bytes()), 1 << 30, [alice.id])
            await trio.sleep(0.3)
            began = trio.current_time()
            await bob.blobs.put(file)
        assert trio.current_time() - began < 3

    run(scenario)


def test_a_stranger_gets_no_blob(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, 2) as (alice, _):
            cid = await alice.blobs.put(a_file(tmp_path, 3 * LEAF))
            gate = MemberGate({alice.id: alice.host.addresses})
            async with open_host(b"\x63" * 32, ["/ip4/127.0.0.1/tcp/0"], gate) as stranger:
                disk = DiskStore(tmp_path / "stranger", 1 << 30)
                blobs = NetworkBlobStore(stranger, disk, replace(QUICK, patience=1.5))
                with pytest.raises(BlobUnavailable):
                    await blobs.fetch(cid, 1 << 30, [alice.id])
                disk.close()
            assert alice.host.traffic.protocol_sent[PROTOCOL] == 0

    run(scenario)


def test_a_lone_provider_that_stalls_is_named_when_the_patience_ends(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, 2, replace(QUICK, patience=2.0, stall=1.0)) as (mallory, bob):
            cid = await mallory.blobs.put(a_file(tmp_path, 3 * LEAF))
            mallory.host.set_stream_handler(PROTOCOL, Stalling(mallory.disk, trio.CapacityLimiter(2)).serve)
            with pytest.raises(BlobUnavailable, match="sent no leaf within 1 s"):
                await bob.blobs.fetch(cid, 1 << 30, [mallory.id])
            assert {d.fault for d in bob.blobs.dropped} == {Fault.STALLED}
            assert bob.disk.used == 0

    run(scenario)


def test_a_provider_that_dies_midway_is_replaced(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, 3) as (alice, carol, bob):
            file = a_file(tmp_path, 40 * 1024 * 1024)
            for peer in (alice, carol):
                cid = await peer.blobs.put(file)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bob.blobs.fetch, cid, 1 << 30, [alice.id, carol.id])
                while alice.host.traffic.protocol_sent[PROTOCOL] < 2_000_000:
                    await trio.sleep(0.001)
                bob.host.gate.suspend(alice.id, 60)
            path = bob.blobs.path(cid)
            assert path is not None
            assert sha(path) == sha(file)

    run(scenario)


def test_a_transfer_continues_from_the_verified_leaves_after_a_restart(tmp_path: Path) -> None:
    size = 40 * LEAF
    file = a_file(tmp_path, size)
    cid = cid_of_bytes(file.read_bytes())
    with file.open("rb", buffering=0) as source:
        leaves = hash_leaves(source)
    earlier = DiskStore(tmp_path / "store-1", 1 << 32)
    incoming = earlier.receive(cid, leaves)
    incoming.add(0, file.read_bytes()[: 36 * LEAF])
    with incoming.path.open("r+b") as partial:
        partial.seek(5 * LEAF)
        partial.write(b"damaged")
    incoming.close()
    earlier.close()

    async def scenario() -> None:
        async with federation(tmp_path, 2) as (alice, bob):
            await alice.blobs.put(file)
            path = await bob.blobs.fetch(cid, size, [alice.id])
            assert sha(path) == sha(file)
            assert alice.host.traffic.protocol_sent[PROTOCOL] < 6 * LEAF

    run(scenario)


def test_concurrent_fetches_of_one_blob_move_it_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, 2) as (alice, bob):
            size = 12 * LEAF
            cid = await alice.blobs.put(a_file(tmp_path, size))
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(bob.blobs.fetch, cid, size, [alice.id])
            assert alice.host.traffic.protocol_sent[PROTOCOL] < 1.2 * size

    run(scenario)


def test_a_cancelled_fetch_hands_over_to_those_that_joined_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, 2) as (alice, bob):
            file = a_file(tmp_path, 12 * LEAF)
            cid = cid_of_bytes(file.read_bytes())
            async with trio.open_nursery() as nursery:
                first = trio.CancelScope()

                async def impatient() -> None:
                    with first:
                        await bob.blobs.fetch(cid, 1 << 30, [alice.id])

                nursery.start_soon(impatient)
                await trio.sleep(0.1)
                nursery.start_soon(bob.blobs.fetch, cid, 1 << 30, [alice.id])
                await trio.sleep(0.1)
                first.cancel()
                await alice.blobs.put(file)
            assert bob.blobs.path(cid) is not None

    run(scenario)


def test_a_store_without_room_says_so_and_keeps_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, 2) as (alice, bob):
            cid = await alice.blobs.put(a_file(tmp_path, 3 * LEAF))
            bob.disk.capacity = 2 * LEAF
            with pytest.raises(StoreFull, match="no room for"):
                await bob.blobs.fetch(cid, 1 << 30, [alice.id])
            assert not list((bob.disk.root / "incoming").iterdir())

    run(scenario)


@given(frame=st.binary(min_size=53, max_size=53))
def test_any_frame_is_a_valid_request_or_refused_by_name(frame: bytes) -> None:
    try:
        request = Request.decode(frame)
    except (MalformedAnswer, InvalidCid):
        return
    assert request.encode() == frame


@given(kind=st.sampled_from(Kind), first=st.integers(0, 1 << 30), length=st.integers(1, MAX_SEGMENT))
def test_requests_round_trip(kind: Kind, first: int, length: int) -> None:
    cid = cid_of_digest(Codec.DAG_PB, bytes(32))
    request = Request(kind, cid, first * LEAF, length) if kind is Kind.CONTENT else Request(kind, cid)
    assert Request.decode(request.encode()) == request


def test_garbage_ends_its_stream_and_nothing_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, 2) as (alice, mallory):
            cid = await alice.blobs.put(a_file(tmp_path, 3 * LEAF))
            for garbage in (b"", b"\0", b"\xff" * 53, Request(Kind.ROOT, cid).encode() * 3 + b"\x07" * 200):
                stream = await mallory.host.open_stream(alice.id, PROTOCOL, 2)
                await stream.write(garbage)
                await stream.close()
            stream = await mallory.host.open_stream(alice.id, PROTOCOL, 2)
            await stream.write(Request(Kind.CONTENT, cid, 1 << 60, MAX_SEGMENT).encode())
            assert await stream.read_exactly(9) == bytes(9)
            await stream.reset()
            assert (await mallory.blobs.fetch(cid, 1 << 30, [alice.id])).stat().st_size == 3 * LEAF

    run(scenario)
