"""The simulated blob network: real CIDs, virtual time, faults that a fetch survives or names."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from folkmoot.p2p.memory_blobs import MemoryBlobs
from folkmoot.p2p.types import BlobTooLarge, BlobUnavailable, PeerId
from folkmoot.p2p.unixfs import cid_of_bytes

ALICE, BOB, CAROL = PeerId(b"alice"), PeerId(b"bob"), PeerId(b"carol")
CONTENT = bytes(range(256)) * 4000


def under_virtual_time(scenario: Callable[[], Awaitable[None]]) -> None:
    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.fixture
def content(tmp_path: Path) -> Path:
    file = tmp_path / "content"
    file.write_bytes(CONTENT)
    return file


def test_a_blob_put_by_one_peer_is_fetched_by_another(tmp_path: Path, content: Path) -> None:
    async def scenario() -> None:
        network = MemoryBlobs()
        alice, bob = network.join(ALICE, tmp_path / "a"), network.join(BOB, tmp_path / "b")
        cid = await alice.put(content)
        assert cid == cid_of_bytes(CONTENT)
        assert bob.path(cid) is None
        assert (await bob.fetch(cid, len(CONTENT), [ALICE])).read_bytes() == CONTENT
        document = await alice.put_document(b"\xa0")
        assert (await bob.fetch(document, 1, [])).read_bytes() == b"\xa0"

    under_virtual_time(scenario)


def test_liars_withholders_and_the_absent_are_passed_over(tmp_path: Path, content: Path) -> None:
    async def scenario() -> None:
        network = MemoryBlobs()
        alice, bob, carol = (network.join(p, tmp_path / p.decode()) for p in (ALICE, BOB, CAROL))
        cid = await alice.put(content)
        await bob.put(content)
        alice.faults.corrupting = True
        assert (await carol.fetch(cid, len(CONTENT), [ALICE, BOB])).read_bytes() == CONTENT
        bob.faults.withheld.add(cid)
        dave = network.join(PeerId(b"dave"), tmp_path / "dave")
        carol.faults.offline = True
        began = trio.current_time()
        with pytest.raises(BlobUnavailable, match="30"):
            await dave.fetch(cid, len(CONTENT), [ALICE, BOB])
        assert trio.current_time() - began == pytest.approx(30, abs=1)
        assert dave.path(cid) is None

    under_virtual_time(scenario)


def test_a_fetch_waits_for_a_provider_that_comes_late(tmp_path: Path, content: Path) -> None:
    async def scenario() -> None:
        network = MemoryBlobs()
        alice, bob = network.join(ALICE, tmp_path / "a"), network.join(BOB, tmp_path / "b")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bob.fetch, cid_of_bytes(CONTENT), len(CONTENT), [ALICE])
            nursery.start_soon(bob.fetch, cid_of_bytes(CONTENT), len(CONTENT), [ALICE])
            await trio.sleep(5)
            await alice.put(content)
        assert trio.current_time() < 7

    under_virtual_time(scenario)


def test_a_slow_provider_takes_its_time_and_the_limit_comes_first(tmp_path: Path, content: Path) -> None:
    async def scenario() -> None:
        network = MemoryBlobs()
        alice, bob = network.join(ALICE, tmp_path / "a"), network.join(BOB, tmp_path / "b")
        cid = await alice.put(content)
        alice.faults.seconds_per_megabyte = 10
        began = trio.current_time()
        with pytest.raises(BlobTooLarge, match="the limit is 10"):
            await bob.fetch(cid, 10, [ALICE])
        assert trio.current_time() - began < 1
        began = trio.current_time()
        await bob.fetch(cid, len(CONTENT), [ALICE])
        assert 10 < trio.current_time() - began < 11

    under_virtual_time(scenario)
