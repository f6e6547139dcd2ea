"""Root CIDs against an independent importer: npm `ipfs-unixfs-importer`, fed the same files."""

import json
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from folkmoot.p2p.unixfs import IPFS, Layout, cid_of_file

HERE = Path(__file__).parent / "npm"
LEAF = IPFS.leaf
Import = Callable[[Path, Layout], str]

pytestmark = pytest.mark.npm


@pytest.fixture(scope="module")
def ipfs_import() -> Iterator[Import]:
    """The importer as a process that answers one line for each request."""
    node = shutil.which("node")
    if node is None or not (HERE / "node_modules").is_dir():
        pytest.skip("needs node and `npm ci` in tests/p2p/npm")
    with subprocess.Popen(
        [node, str(HERE / "import.js")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(path: Path, layout: Layout) -> str:
            request = {"path": str(path), "leaf": layout.leaf, "links": layout.links}
            process.stdin.write(json.dumps(request) + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            return process.stdout.readline().strip()  # type: ignore[union-attr]

        yield ask
        process.stdin.close()
        process.wait(timeout=10)


@pytest.mark.parametrize(
    "size",
    [0, 1, LEAF - 1, LEAF, LEAF + 1, 174 * LEAF - 1, 174 * LEAF, 174 * LEAF + 1, 174 * 2 * LEAF + 1],
)
def test_the_layout_of_ipfs_add_at_every_border(ipfs_import: Import, tmp_path: Path, size: int) -> None:
    seed = random.randrange(1 << 32)
    file = tmp_path / "content"
    file.write_bytes(random.Random(seed).randbytes(size))
    assert cid_of_file(file) == ipfs_import(file, IPFS), f"seed {seed}"


def test_narrow_trees_of_every_size_up_to_four_levels(ipfs_import: Import, tmp_path: Path) -> None:
    file = tmp_path / "content"
    for layout in (Layout(leaf=1, links=2), Layout(leaf=2, links=3), Layout(leaf=3, links=4)):
        for size in range(90):
            file.write_bytes(bytes(range(size)))
            assert cid_of_file(file, layout) == ipfs_import(file, layout), (layout, size)
