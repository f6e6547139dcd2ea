"""Blobs between processes: a receiver that is killed continues, and memory does not grow with the blob."""

import json
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import trio

from folkmoot.p2p.bulk import PROTOCOL
from folkmoot.p2p.gate import MemberGate
from folkmoot.p2p.host import open_host
from folkmoot.p2p.identity import peer_id_of_seed
from folkmoot.p2p.network_blobs import NetworkBlobStore
from folkmoot.p2p.store import DiskStore
from folkmoot.p2p.unixfs import cid_of_file

pytestmark = pytest.mark.slow

SEED, OTHER_SEED = b"\1" * 32, b"\2" * 32
MEGABYTE = 1 << 20
RECEIVER = """
    import json, resource, sys
    from pathlib import Path
    import trio
    from folkmoot.p2p.gate import MemberGate
    from folkmoot.p2p.host import open_host
    from folkmoot.p2p.identity import peer_id_of_seed
    from folkmoot.p2p.network_blobs import NetworkBlobStore
    from folkmoot.p2p.store import DiskStore

    def megabytes():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    async def main(folder, address, cid):
        other = peer_id_of_seed(b"\\1" * 32)
        gate = MemberGate({other: [address]})
        store = DiskStore(Path(folder), 1 << 40)
        async with open_host(b"\\2" * 32, ["/ip4/127.0.0.1/tcp/0"], gate) as host:
            blobs = NetworkBlobStore(host, store)
            await host.wait_connected(other)
            before = megabytes()
            await blobs.fetch(cid, 1 << 40, [other])
            print(json.dumps({"before": before, "after": megabytes(), "received": host.traffic.received}))
        store.verify(cid)

    trio.run(main, *sys.argv[1:])
"""


def test_a_killed_receiver_continues_where_it_was_in_constant_memory(tmp_path: Path) -> None:
    file = tmp_path / "content"
    size = 128 * MEGABYTE
    with file.open("wb") as out:
        block = random.Random(4).randbytes(MEGABYTE // 4)
        for leaf in range(size // len(block)):
            out.write(leaf.to_bytes(8, "big") + block[8:])
    reports = []

    async def scenario() -> None:
        store = DiskStore(tmp_path / "served", 1 << 40)
        gate = MemberGate({peer_id_of_seed(OTHER_SEED): ()})
        async with open_host(SEED, ["/ip4/127.0.0.1/tcp/0"], gate) as host:
            cid = await NetworkBlobStore(host, store).put(file)
            arguments = [str(tmp_path / "received"), host.addresses[0], cid]
            command = [sys.executable, "-c", textwrap.dedent(RECEIVER), *arguments]
            first = await trio.lowlevel.open_process(command)
            while host.traffic.protocol_sent[PROTOCOL] < 60 * MEGABYTE:
                await trio.sleep(0.005)
            first.send_signal(signal.SIGKILL)
            await first.wait()
            done = await trio.run_process(command, capture_stdout=True)
            reports.append(json.loads(done.stdout))
        store.close()

    async def bounded() -> None:
        with trio.fail_after(120):
            await scenario()

    trio.run(bounded)
    (report,) = reports
    assert report["received"] < 90 * MEGABYTE
    assert report["after"] - report["before"] < 64


def test_a_frozen_provider_is_overtaken(tmp_path: Path) -> None:
    file = tmp_path / "content"
    file.write_bytes(random.Random(3).randbytes(24 * MEGABYTE))
    provider = """
        import sys
        from pathlib import Path
        import trio
        from folkmoot.p2p.gate import MemberGate
        from folkmoot.p2p.host import open_host
        from folkmoot.p2p.identity import peer_id_of_seed
        from folkmoot.p2p.network_blobs import NetworkBlobStore
        from folkmoot.p2p.store import DiskStore

        async def main(folder, file, seed):
            gate = MemberGate({peer_id_of_seed(b"\\2" * 32): ()})
            store = DiskStore(Path(folder), 1 << 40)
            async with open_host(bytes.fromhex(seed), ["/ip4/127.0.0.1/tcp/0"], gate) as host:
                await NetworkBlobStore(host, store).put(Path(file))
                print(host.addresses[0], flush=True)
                await trio.sleep(100)

        trio.run(main, *sys.argv[1:])
    """
    seeds = [bytes([k]) * 32 for k in (5, 6)]
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(provider),
                str(tmp_path / seed.hex()),
                str(file),
                seed.hex(),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in seeds
    ]

    async def scenario() -> None:
        addresses = [process.stdout.readline().strip() for process in processes if process.stdout]
        peers = [peer_id_of_seed(seed) for seed in seeds]
        gate = MemberGate({peer: [address] for peer, address in zip(peers, addresses, strict=True)})
        store = DiskStore(tmp_path / "received", 1 << 40)
        async with open_host(OTHER_SEED, ["/ip4/127.0.0.1/tcp/0"], gate) as host:
            for peer in peers:
                await host.wait_connected(peer)
            processes[0].send_signal(signal.SIGSTOP)
            cid = cid_of_file(file)
            began = trio.current_time()
            blobs = NetworkBlobStore(host, store)
            await blobs.fetch(cid, 1 << 40, peers)
            assert trio.current_time() - began < 15
            store.verify(cid)
        store.close()

    async def bounded() -> None:
        with trio.fail_after(60):
            await scenario()

    try:
        trio.run(bounded)
    finally:
        for process in processes:
            process.kill()
            process.wait()
