"""IPFS nodes that the gate admits get the store's blocks by bitswap, and can do no harm with it."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from libp2p.bitswap import BitswapClient
from libp2p.bitswap.pb.bitswap_pb2 import Message
from libp2p.peer.id import ID

from folkmoot.p2p.bitswap import PROTOCOLS, serving_bitswap
from folkmoot.p2p.cid import Codec, cid_of_digest, to_bytes
from folkmoot.p2p.gate import MemberGate
from folkmoot.p2p.host import Host, open_host
from folkmoot.p2p.identity import peer_id_of_seed
from folkmoot.p2p.store import DiskStore
from folkmoot.p2p.streams import StreamBroken
from folkmoot.p2p.types import Cid
from folkmoot.p2p.unixfs import IPFS, cid_of_bytes, open_root

LEAF = IPFS.leaf


@asynccontextmanager
async def server_and_guest(folder: Path, idle: float = 30.0) -> AsyncIterator[tuple[Host, DiskStore, Host]]:
    """A host that serves its store, and another that the gate admits."""
    seeds = [bytes([k + 1]) * 32 for k in range(2)]
    async with AsyncExitStack() as stack:
        gates = [MemberGate({peer_id_of_seed(seed): () for seed in seeds}) for _ in seeds]
        hosts = [
            await stack.enter_async_context(open_host(seed, ["/ip4/127.0.0.1/tcp/0"], gate))
            for seed, gate in zip(seeds, gates, strict=True)
        ]
        disk = DiskStore(folder / "store", 1 << 30)
        stack.callback(disk.close)
        await stack.enter_async_context(serving_bitswap(hosts[0], disk, idle))
        for gate in gates:
            gate.update({host.peer_id: host.addresses for host in hosts})
        await hosts[0].wait_connected(hosts[1].peer_id)
        await hosts[1].wait_connected(hosts[0].peer_id)
        yield hosts[0], disk, hosts[1]


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(60):
            await scenario()

    trio.run(bounded)


def a_file(folder: Path, size: int) -> Path:
    file = folder / "content"
    file.write_bytes(random.Random(5).randbytes(size))
    return file


@pytest.mark.parametrize("idle", [30.0, 0.0])
def test_the_librarys_client_rebuilds_a_file_from_our_blocks(tmp_path: Path, idle: float) -> None:
    async def scenario() -> None:
        async with server_and_guest(tmp_path, idle) as (server, disk, guest), trio.open_nursery() as nursery:
            file = a_file(tmp_path, 5 * LEAF + 3)
            cid = disk.put(file)
            client = BitswapClient(guest.basic)
            client.set_nursery(nursery)
            await client.start()
            provider = ID(bytes(server.peer_id))
            session = client.new_session()
            root = open_root(await session.get_block(cid, provider, timeout=20))
            leaves = [
                await session.get_block(cid_of_digest(Codec.RAW, digest), provider, timeout=20)
                for digest in root.links
            ]
            assert cid_of_bytes(b"".join(leaves)) == cid
            await client.stop()
            nursery.cancel_scope.cancel()

    run(scenario)


def a_want(cid: bytes, kind: int = 0) -> bytes:
    message = Message()
    message.wantlist.entries.add(block=cid, wantType=kind, sendDontHave=True)
    return message.SerializeToString()


def test_what_is_absent_or_foreign_is_answered_with_dont_have(tmp_path: Path) -> None:
    answers: list[Message] = []

    async def scenario() -> None:
        async with server_and_guest(tmp_path) as (server, disk, guest):
            done = trio.Event()

            async def read(stream: object, _: object) -> None:
                for _ in range(3):
                    size = (await stream.read_exactly(1))[0]  # type: ignore[attr-defined]
                    answers.append(Message.FromString(await stream.read_exactly(size)))  # type: ignore[attr-defined]
                done.set()

            guest.set_stream_handler(PROTOCOLS[0], read)
            here = disk.put_document(b"\xa0")
            stream = await guest.open_stream(server.peer_id, PROTOCOLS[0], 5)
            for cid in (b"\x12\x20" + bytes(32), to_bytes(cid_of_digest(Codec.RAW, bytes(32)))):
                await stream.write(bytes([len(a_want(cid))]) + a_want(cid))
            want = a_want(to_bytes(here), Message.Wantlist.Have)
            await stream.write(bytes([len(want)]) + want)
            await done.wait()

    run(scenario)
    assert [answer.blockPresences[0].type for answer in answers] == [
        Message.DontHave,
        Message.DontHave,
        Message.Have,
    ]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 20,
        b"\xff\xff\xff\x7f",
        b"\x05hello",
        b"\x85\x02" + a_want(b"\x01" * 256)[:261],
        b"".join(
            bytes([len(a_want(k.to_bytes(4, "big")))]) + a_want(k.to_bytes(4, "big")) for k in range(300)
        ),
    ],
)
def test_garbage_ends_a_stream_and_the_next_want_is_served(tmp_path: Path, garbage: bytes) -> None:
    async def scenario() -> None:
        async with server_and_guest(tmp_path) as (server, disk, guest), trio.open_nursery() as nursery:
            stream = await guest.open_stream(server.peer_id, PROTOCOLS[0], 5)
            await stream.write(garbage)
            await stream.close()
            with trio.move_on_after(0.3):
                with suppress(StreamBroken):
                    await stream.read(1)
            cid: Cid = disk.put_document(b"\xa1aa\x01")
            client = BitswapClient(guest.basic)
            client.set_nursery(nursery)
            await client.start()
            session = client.new_session()
            assert await session.get_block(cid, ID(bytes(server.peer_id)), timeout=20) == b"\xa1aa\x01"
            await client.stop()
            nursery.cancel_scope.cancel()

    run(scenario)


def test_blocks_sent_unasked_are_not_stored(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with server_and_guest(tmp_path) as (server, disk, guest):
            message = Message()
            message.payload.add(prefix=b"\x01\x55\x12\x20", data=b"unasked")
            content = message.SerializeToString()
            stream = await guest.open_stream(server.peer_id, PROTOCOLS[0], 5)
            await stream.write(bytes([len(content)]) + content)
            await stream.close()
            assert await stream.read(1) == b""
            assert list(disk.blobs()) == []

    run(scenario)
