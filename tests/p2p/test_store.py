"""The store keeps every blob once, whole or not at all, and can say when a disk lied."""

import errno
import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from folkmoot.p2p.blob_files import MAX_BLOCK, NoStore
from folkmoot.p2p.cid import Codec, cid_of_block, cid_of_digest
from folkmoot.p2p.durable import StoreInUse
from folkmoot.p2p.store import DiskStore
from folkmoot.p2p.types import BlobCorrupt, BlobTooLarge, BlobUnavailable, Cid, InvalidCid, StoreFull
from folkmoot.p2p.unixfs import IPFS, Leaves, cid_of_bytes, hash_leaves, root_cid, tree

LEAF = IPFS.leaf
ROOMY = 1 << 30
VAST = Leaves(bytes(32) * 1000, 1000 * LEAF)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    opened = DiskStore(tmp_path / "store", ROOMY)
    yield opened
    opened.close()


def a_file(folder: Path, size: int, seed: int = 1) -> Path:
    file = folder / f"{seed}-{size}"
    file.write_bytes(random.Random(seed).randbytes(size))
    return file


def everything(root: Path) -> dict[str, tuple[int, int, str]]:
    """Every file below a folder: size, modification time and hash."""
    return {
        str(p.relative_to(root)): (
            p.stat().st_size,
            p.stat().st_mtime_ns,
            hashlib.sha256(p.read_bytes()).hexdigest(),
        )
        for p in root.rglob("*")
        if p.is_file()
    }


def leftovers(root: Path) -> list[Path]:
    return [p for name in ("tmp", "incoming") for p in (root / name).iterdir()]


@pytest.mark.parametrize("size", [0, 1, LEAF, LEAF + 1, 3 * LEAF])
def test_an_imported_file_is_found_under_the_cid_of_ipfs_add(
    store: DiskStore, tmp_path: Path, size: int
) -> None:
    file = a_file(tmp_path, size)
    cid = store.put(file)
    assert cid == cid_of_bytes(file.read_bytes())
    path = store.path(cid)
    assert path is not None
    assert path.read_bytes() == file.read_bytes()
    assert (store.size(cid), list(store.blobs())) == (size, [cid])
    store.verify(cid)
    assert leftovers(store.root) == []


def test_the_same_bytes_twice_take_their_room_once(store: DiskStore, tmp_path: Path) -> None:
    file = a_file(tmp_path, 2 * LEAF)
    assert store.put(file) == store.put(file)
    assert store.used == 2 * LEAF


def test_a_document_is_kept_as_it_is_and_bounded(store: DiskStore) -> None:
    content = b"\xa1aa\x01"
    cid = store.put_document(content)
    assert cid == cid_of_block(Codec.DAG_CBOR, content)
    assert store.find_block(cid) == content
    with pytest.raises(BlobTooLarge, match="1048576 bytes, found 1048577"):
        store.put_document(bytes(MAX_BLOCK + 1))
    with pytest.raises(BlobCorrupt):
        store.put_block(cid, b"something else")


def test_every_block_of_a_file_is_found_by_its_own_cid(store: DiskStore, tmp_path: Path) -> None:
    file = a_file(tmp_path, 175 * LEAF + 9)
    store.put(file)
    content = file.read_bytes()
    with file.open("rb", buffering=0) as source:
        leaves = hash_leaves(source)
    for index in (0, 173, 174, 175):
        leaf = store.find_block(cid_of_digest(Codec.RAW, leaves.digest(index)))
        assert leaf == content[index * LEAF : (index + 1) * LEAF]
    for digest, block in tree(leaves):
        assert store.find_block(cid_of_digest(Codec.DAG_PB, digest)) == block
    assert store.find_block(cid_of_digest(Codec.DAG_PB, bytes(32))) is None


def test_a_flipped_byte_is_found_and_its_leaf_named(store: DiskStore, tmp_path: Path) -> None:
    cid = store.put(a_file(tmp_path, 3 * LEAF))
    flip(store, cid, LEAF + 7)
    with pytest.raises(BlobCorrupt, match=f"{cid} is corrupt: leaf 1, bytes {LEAF} to {2 * LEAF}"):
        store.verify(cid)
    with pytest.raises(BlobUnavailable, match="is not in the store"):
        store.verify(cid_of_block(Codec.RAW, b"elsewhere"))


def test_a_flipped_byte_of_a_document_and_a_cut_file_are_found(store: DiskStore, tmp_path: Path) -> None:
    document = store.put_document(b"\xa0")
    flip(store, document, 0)
    with pytest.raises(BlobCorrupt, match=document):
        store.verify(document)
    assert store.find_block(document) is None
    file = store.put(a_file(tmp_path, 2 * LEAF))
    path = store.path(file)
    assert path is not None
    path.chmod(0o644)
    os.truncate(path, LEAF)
    with pytest.raises(BlobCorrupt, match=file):
        store.verify(file)


def flip(store: DiskStore, cid: Cid, offset: int) -> None:
    path = store.path(cid)
    assert path is not None
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_a_name_that_is_no_cid_never_becomes_a_path(store: DiskStore) -> None:
    for name in ("../../secret", "", "b" * 59, "/etc/passwd"):
        for use in (store.path, store.pin, store.unpin, store.verify, store.find_block):
            with pytest.raises(InvalidCid):
                use(Cid(name))  # type: ignore[operator]


def test_unpinned_blobs_go_oldest_first_when_room_is_needed(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "store", 3000)
    cids = [store.put(a_file(tmp_path, 1000, seed)) for seed in range(3)]
    for age, cid in enumerate(reversed(cids)):
        path = store.path(cid)
        assert path is not None
        os.utime(path, ns=(0, 10**9 * (10 - age)))
    store.close()
    store = DiskStore(tmp_path / "store", 3000)
    store.pin(cids[0])
    last = store.put(a_file(tmp_path, 1000, 9))
    assert set(store.blobs()) == {cids[0], cids[2], last}
    assert store.used == 3000
    store.close()


def test_pinned_blobs_stay_and_the_newcomer_is_refused(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "store", 2000)
    cid = store.put(a_file(tmp_path, 1500))
    store.pin(cid)
    before = everything(store.root)
    with pytest.raises(StoreFull, match="no room for 600 bytes: 1500 of its 2000"):
        store.put(a_file(tmp_path, 600, 2))
    with pytest.raises(StoreFull):
        store.receive(root_cid(VAST), VAST)
    assert everything(store.root) == before
    store.unpin(cid)
    store.put(a_file(tmp_path, 600, 2))
    assert store.path(cid) is None
    store.close()


def test_pins_and_blobs_survive_the_process_and_the_loss_of_the_index(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = DiskStore(root, ROOMY)
    cid = store.put(a_file(tmp_path, 3 * LEAF))
    store.pin(cid)
    store.close()
    for damage in (b"", b"not a database" * 100, None):
        if damage is None:
            (root / "index.sqlite").unlink()
        else:
            (root / "index.sqlite").write_bytes(damage)
        store = DiskStore(root, ROOMY)
        assert (store.pins(), store.used) == (frozenset({cid}), 3 * LEAF)
        leaf = hash_leaves((root / "blobs" / cid[-4:-2] / cid).open("rb", buffering=0)).digest(2)
        assert store.find_block(cid_of_digest(Codec.RAW, leaf)) is not None
        store.close()


def test_a_file_that_lost_its_record_is_hashed_again_and_a_foreign_one_removed(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = DiskStore(root, ROOMY)
    kept, damaged = (store.put(a_file(tmp_path, 3 * LEAF, seed)) for seed in (1, 2))
    flip(store, damaged, 5)
    store.close()
    (root / "index.sqlite").unlink()
    for cid in (kept, damaged):
        (root / "leaves" / cid[-4:-2] / cid).unlink()
    store = DiskStore(root, ROOMY)
    assert list(store.blobs()) == [kept]
    store.verify(kept)
    store.close()


def test_an_auditor_reads_without_changing_a_byte(store: DiskStore, tmp_path: Path) -> None:
    cid = store.put(a_file(tmp_path, 3 * LEAF))
    store.pin(cid)
    before = everything(store.root)
    reader = DiskStore.open_readonly(store.root)
    reader.verify(cid)
    assert (list(reader.blobs()), reader.pins(), reader.size(cid)) == ([cid], frozenset({cid}), 3 * LEAF)
    assert len(reader.nodes(cid)) == 1
    assert everything(store.root) == before
    with pytest.raises(NoStore, match="holds no blob store"):
        DiskStore.open_readonly(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_second_writer_is_refused(store: DiskStore) -> None:
    with pytest.raises(StoreInUse, match="another process uses"):
        DiskStore(store.root, ROOMY)


def test_a_disk_that_fills_while_a_file_is_imported_leaves_nothing(tmp_path: Path) -> None:
    program = f"""
        import resource, signal
        from pathlib import Path
        from folkmoot.p2p.store import DiskStore
        from folkmoot.p2p.types import StoreFull
        store = DiskStore(Path({str(tmp_path / "store")!r}), 1 << 30)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            store.put(Path({str(a_file(tmp_path, 8 * LEAF))!r}))
        except StoreFull as error:
            print(error)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "is full" in run.stdout
    store = DiskStore(tmp_path / "store", ROOMY)
    assert (list(store.blobs()), store.used, leftovers(store.root)) == ([], 0, [])
    store.close()


def test_a_disk_without_room_refuses_a_blob_before_its_first_byte(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StoreFull, match="No space left"):
        store.receive(root_cid(VAST), VAST)
    assert (store.used, leftovers(store.root)) == (0, [])


def test_sigkill_at_any_moment_leaves_whole_blobs_only(tmp_path: Path) -> None:
    files = [a_file(tmp_path, (k % 4) * LEAF + 100 * k, k) for k in range(40)]
    program = f"""
        import sys
        from pathlib import Path
        from folkmoot.p2p.store import DiskStore
        store = DiskStore(Path({str(tmp_path / "store")!r}), 1 << 30)
        for file in sys.argv[1:]:
            print(store.put(Path(file)), flush=True)
    """
    expected = {cid_of_bytes(file.read_bytes()) for file in files}
    for reported in (1, 4, 9):
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), *map(str, files)],
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            done = [process.stdout.readline().strip() for _ in range(reported)]
            process.send_signal(signal.SIGKILL)
        store = DiskStore(tmp_path / "store", ROOMY)
        found = set(store.blobs())
        assert set(done) <= found <= expected
        for cid in found:
            store.verify(cid)
        assert leftovers(store.root) == []
        store.close()


def test_a_blob_that_arrives_leaf_by_leaf_survives_an_interruption(store: DiskStore, tmp_path: Path) -> None:
    file = a_file(tmp_path, 2 * LEAF + 5)
    content = file.read_bytes()
    with file.open("rb", buffering=0) as source:
        leaves = hash_leaves(source)
    cid = cid_of_bytes(content)
    incoming = store.receive(cid, leaves)
    assert incoming.add(1, content[LEAF : 2 * LEAF]) is None
    incoming.close()
    root = store.root
    store.close()
    again = DiskStore(root, ROOMY)
    assert again.has_partial(cid)
    incoming = again.receive(cid, leaves)
    incoming.recover(range(3))
    assert incoming.missing == {0, 2}
    assert incoming.add(0, content[:LEAF]) is None
    with pytest.raises(BlobUnavailable, match="lacks 1 leaves"):
        incoming.accept()
    assert incoming.add(2, content[2 * LEAF :]) is None
    assert again.path(cid) is None
    assert incoming.accept().read_bytes() == content
    assert incoming.add(0, content) is None
    incoming.close()
    again.verify(cid)
    assert (again.used, leftovers(root)) == (len(content), [])
    again.close()


def test_a_disk_that_fills_while_a_blob_arrives_is_named(
    store: DiskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = a_file(tmp_path, 3 * LEAF).read_bytes()
    leaves = hash_leaves(io.BytesIO(content))
    incoming = store.receive(root_cid(leaves), leaves)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreFull, match="No space left"):
        incoming.add(0, content)
    incoming.close()
    assert (store.used, leftovers(store.root)) == (0, [])


def test_a_partial_blob_counts_as_used_and_is_the_first_to_go(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "store", 5 * LEAF)
    content = a_file(tmp_path, 3 * LEAF).read_bytes()
    leaves = hash_leaves(io.BytesIO(content))
    incoming = store.receive(root_cid(leaves), leaves)
    incoming.add(0, content[:LEAF])
    incoming.close()
    store.close()
    store = DiskStore(tmp_path / "store", 5 * LEAF)
    assert store.used == 3 * LEAF
    kept = store.put(a_file(tmp_path, 2 * LEAF, 8))
    assert store.has_partial(root_cid(leaves))
    store.put(a_file(tmp_path, LEAF, 9))
    assert (store.has_partial(root_cid(leaves)), store.used) == (False, 3 * LEAF)
    assert store.path(kept) is not None
    store.close()


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_leaves_after_a_wrong_one_do_not_count(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    wrong = data.draw(st.integers(0, 3), label="wrong leaf")
    content = bytearray(b"".join(bytes([k]) * LEAF for k in range(4)))
    leaves = hash_leaves(io.BytesIO(content))
    content[wrong * LEAF + data.draw(st.integers(0, LEAF - 1), label="byte")] ^= 1
    store = DiskStore(tmp_path_factory.mktemp("store"), ROOMY)
    incoming = store.receive(root_cid(leaves), leaves)
    assert incoming.add(0, content) == wrong
    assert incoming.missing == set(range(wrong, 4))
    incoming.close()
    store.close()
