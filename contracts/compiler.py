"""The compiled contracts: abi and creation code of each, as committed under artifacts/.

`python -m folkmoot.contracts.compiler` compiles the sources with the pinned compiler (npm) and writes them.
Nothing at run time compiles: the ledger reads the committed files.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

__all__ = ["CONTRACTS", "FORGE", "ROOT", "CompilerFailed", "compile_contracts", "write_artifacts"]

ROOT = Path(__file__).resolve().parent
"""The Foundry project."""
FORGE = ROOT / "node_modules" / ".bin" / "forge"
CONTRACTS = ("MemberRegistry", "RoundManager", "TaskBoard")
COMPILE_SECONDS = 300


class CompilerFailed(Exception):
    """forge is missing or refused the sources."""


def compile_contracts() -> dict[str, bytes]:
    """Compile the sources; return the content of each artifact by contract name.

    The content is canonical JSON {"abi": [...], "bytecode": "0x..."}: sorted keys, two spaces, a final
    newline. The compiler settings leave metadata out of the code, so the bytes depend on the sources alone.
    Raises CompilerFailed.
    """
    if not FORGE.exists():
        raise CompilerFailed(f"no forge at {FORGE}: run `npm ci` in {ROOT}")
    with tempfile.TemporaryDirectory(prefix="folkmoot-compile-") as scratch:
        out = Path(scratch) / "out"
        command: list[str | Path] = [
            FORGE,
            "build",
            "src",
            "--out",
            out,
            "--cache-path",
            Path(scratch) / "cache",
        ]
        try:
            build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=COMPILE_SECONDS)
        except subprocess.TimeoutExpired as expired:
            raise CompilerFailed(f"forge did not finish within {COMPILE_SECONDS} s") from expired
        if build.returncode != 0:
            raise CompilerFailed(f"forge refused the sources:\n{build.stdout}{build.stderr}")
        return {name: _artifact(out / f"{name}.sol" / f"{name}.json") for name in CONTRACTS}


def write_artifacts() -> tuple[Path, ...]:
    """Compile and replace the committed artifacts; return their paths."""
    paths = []
    for name, content in compile_contracts().items():
        path = ROOT / "artifacts" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        paths.append(path)
    return tuple(paths)


def _artifact(compiled: Path) -> bytes:
    output = json.loads(compiled.read_text())
    kept = {"abi": output["abi"], "bytecode": output["bytecode"]["object"]}
    return (json.dumps(kept, sort_keys=True, indent=2) + "\n").encode()


if __name__ == "__main__":
    for written in write_artifacts():
        print(written.name)
