"""An independent IPFS node (npm `@helia/bitswap`) fetches a file from our host, once the gate admits it."""

import hashlib
import random
import shutil
from pathlib import Path

import pytest
import trio

from folkmoot.p2p.bitswap import serving_bitswap
from folkmoot.p2p.gate import MemberGate
from folkmoot.p2p.host import open_host
from folkmoot.p2p.identity import peer_id_of_seed
from folkmoot.p2p.store import DiskStore
from folkmoot.p2p.unixfs import IPFS

HERE = Path(__file__).parent / "npm"
GUEST = bytes([77]) * 32
STRANGER = bytes([78]) * 32

pytestmark = pytest.mark.npm


@pytest.mark.parametrize("size", [0, 175 * IPFS.leaf + 9])
def test_an_admitted_node_reads_a_file_by_its_cid(tmp_path: Path, size: int) -> None:
    content = random.Random(size).randbytes(size)
    assert fetched_by(GUEST, tmp_path, content) == hashlib.sha256(content).hexdigest()


def test_a_stranger_gets_nothing(tmp_path: Path) -> None:
    assert fetched_by(STRANGER, tmp_path, b"secret").startswith("failed")


def fetched_by(seed: bytes, folder: Path, content: bytes) -> str:
    """What the other node prints when it asks our host for `content`."""
    node = shutil.which("node")
    if node is None or not (HERE / "node_modules").is_dir():
        pytest.skip("needs node and `npm ci` in tests/p2p/npm")
    file = folder / "content"
    file.write_bytes(content)
    printed = ""

    async def scenario() -> None:
        nonlocal printed
        gate = MemberGate({peer_id_of_seed(GUEST): ()})
        disk = DiskStore(folder / "store", 1 << 30)
        cid = disk.put(file)
        async with (
            open_host(bytes(31) + b"\1", ["/ip4/127.0.0.1/tcp/0"], gate) as host,
            serving_bitswap(host, disk),
        ):
            command = [str(node), str(HERE / "fetch.js"), seed.hex(), host.addresses[0], cid]
            done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
            printed = (done.stdout + done.stderr).decode().strip()
        disk.close()

    async def bounded() -> None:
        with trio.fail_after(60):
            await scenario()

    trio.run(bounded)
    return printed
