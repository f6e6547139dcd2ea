"""The Solidity sources: what is committed is what they compile to, and their own tests and linters agree."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from folkmoot.contracts.compiler import CONTRACTS, FORGE, ROOT, compile_contracts

pytestmark = [
    pytest.mark.solidity,
    pytest.mark.skipif(
        shutil.which("npm") is None or shutil.which("node") is None,
        reason="the Foundry tools come from npm, and there is no npm or node on the PATH",
    ),
]

RUNTIME_LIMIT = 24_576
"""Bytes of a contract's code (EIP-170). The creation code contains it, so the bound on both is stricter."""
FOUNDRY_SECONDS = 540


def run(command: list[str | Path], **settings: str) -> str:
    """Run a tool in the Foundry project; return what it said."""
    path = os.pathsep.join([str(FORGE.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    assert FORGE.exists(), f"no forge at {FORGE}: run `npm ci` in {ROOT}"
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PATH": path, "NO_COLOR": "1"} | settings,
        capture_output=True,
        text=True,
        timeout=FOUNDRY_SECONDS,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def test_the_committed_artifacts_are_what_the_sources_compile_to() -> None:
    compiled = compile_contracts()
    committed = {path.stem: path.read_bytes() for path in (ROOT / "artifacts").glob("*.json")}
    assert sorted(committed) == sorted(CONTRACTS)
    stale = [name for name in CONTRACTS if committed[name] != compiled[name]]
    assert not stale, f"stale: {stale}; run `python -m folkmoot.contracts.compiler`"


def test_every_solidity_test_passes_and_the_gas_is_that_of_the_snapshot() -> None:
    said = run([FORGE, "test"])
    summary = re.search(r"(\d+) tests passed, 0 failed, 0 skipped", said)
    assert summary is not None, said
    assert int(summary[1]) >= 100
    assert "GasTest" in said


def test_the_sources_are_formatted() -> None:
    run([FORGE, "fmt", "--check"])


def test_slither_finds_nothing_that_the_sources_do_not_answer(tmp_path: Path) -> None:
    # slither empties the build folders before it compiles, so it gets its own.
    said = run(
        ["slither", "."], FOUNDRY_OUT=str(tmp_path / "out"), FOUNDRY_CACHE_PATH=str(tmp_path / "cache")
    )
    assert "0 result(s) found" in said


def test_every_contract_fits_the_limits_of_a_chain() -> None:
    for name in CONTRACTS:
        artifact = json.loads((ROOT / "artifacts" / f"{name}.json").read_text())
        creation = bytes.fromhex(artifact["bytecode"].removeprefix("0x"))
        assert 0 < len(creation) <= RUNTIME_LIMIT


def test_the_lock_file_names_no_registry_and_pins_every_tool() -> None:
    lock = json.loads((ROOT / "package-lock.json").read_text())
    wanted = json.loads((ROOT / "package.json").read_text())
    for name, version in (wanted["dependencies"] | wanted["devDependencies"]).items():
        entry = lock["packages"][f"node_modules/{name}"]
        assert entry["version"] == version
        assert entry["integrity"].startswith("sha512-")
    assert not [name for name, entry in lock["packages"].items() if "resolved" in entry]


def test_npm_finds_the_tools_of_every_platform_in_the_lock_file() -> None:
    packages = json.loads((ROOT / "package-lock.json").read_text())["packages"]
    wanted = {name for entry in packages.values() for name in entry.get("optionalDependencies", {})}
    assert len(wanted) >= 15
    assert wanted == {
        name.removeprefix("node_modules/") for name, entry in packages.items() if entry.get("optional")
    }
