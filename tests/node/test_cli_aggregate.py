"""`folkmoot aggregate`: safetensors in, safetensors out, one sentence for a failure, nothing left behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import resource
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_tensors

from folkmoot.aggregation.errors import AggregationError
from folkmoot.aggregation.float_blocks import BLOCK, largest_magnitude
from folkmoot.aggregation.interface import aggregate
from folkmoot.aggregation.rules import PREAGGREGATORS, RULES
from folkmoot.node import cli, tensor_files
from folkmoot.node.errors import NodeError
from folkmoot.node.tensor_files import TensorFile

SEED, CASES = 20_240_607, 3_000


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Outcome]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `folkmoot aggregate` in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run_line(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = cli.execute(["aggregate", *(str(a) for a in arguments)])
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run_line


def tensors(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "layer.weight": (rng.normal(0, scale, (4, 5))).astype(np.float32),
        "layer.bias": (rng.normal(0, scale, 5)).astype(np.float32),
        "scale": np.array(rng.normal(0, scale), np.float32),
    }


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Six honest updates and a liar, by name in the working directory."""
    for seed in range(7):
        save_file(tensors(seed, 1e6 if seed == 6 else 1.0), tmp_path / f"{seed}.safetensors")
    return [f"{seed}.safetensors" for seed in range(7)]


def refusal(outcome: Outcome) -> str:
    """The one sentence on stderr of a command that ended with 2 and left nothing new in the folder."""
    assert outcome.code == 2, outcome
    assert outcome.err.startswith("folkmoot: ")
    assert outcome.err.count("\n") == 1
    assert not Path("out.safetensors").exists()
    assert [p for p in Path().iterdir() if p.name.startswith(".folkmoot")] == []
    return outcome.err


class TestResult:
    def test_it_is_what_the_function_gives(self, run: Run, files: list[str]) -> None:
        outcome = run("trimmed-mean", *files, "--f", 2, "--pre", "nnm", "-o", "out.safetensors")
        assert outcome.code == 0, outcome.err
        wanted = aggregate([dict(sorted(load_file(f).items())) for f in files], f=2, pre=["nnm"])
        found = load_file("out.safetensors")
        assert found.keys() == wanted.keys()
        for name, array in found.items():
            assert array.dtype == np.float32
            assert array.shape == wanted[name].shape
            assert array.tobytes() == wanted[name].tobytes()

    def test_it_says_rule_values_and_digest(self, run: Run, files: list[str]) -> None:
        outcome = run("median", *files, "--f", 3, "-o", "out.safetensors")
        assert outcome.out.startswith("median f=3: 7 updates, f = 3, 26 values\n")
        found = load_file("out.safetensors")
        digest = hashlib.sha256(b"".join(found[name].tobytes() for name in sorted(found))).hexdigest()
        assert digest in outcome.out
        assert "kept" not in outcome.out

    def test_json_says_the_same_and_who_was_kept(self, run: Run, files: list[str]) -> None:
        found = run("multi-krum", *files, "--f", 2, "-o", "out.safetensors", "--json").json
        assert (found["updates"], found["f"], found["values"], found["tensors"]) == (7, 2, 26, 3)
        assert len(found["kept"]) == 5
        assert "6.safetensors" in found["rejected"]
        assert sorted(found["kept"] + found["rejected"]) == files
        assert len(found["sha256"]) == 64

    def test_plain_words_name_the_rejected_too(self, run: Run, files: list[str]) -> None:
        outcome = run("bulyan", *files, "--f", 1, "-o", "out.safetensors")
        assert "kept 5: 0.safetensors, " in outcome.out
        assert "rejected 2: " in outcome.out

    def test_the_digest_does_not_depend_on_threads_backend_or_order_of_the_files(
        self, run: Run, files: list[str]
    ) -> None:
        lines = (files, files[::-1], [*files, "--threads", 3], [*files, "--backend", "torch"])
        found = {
            run("phocas", *line, "--f", 2, "-o", "out.safetensors", "--json").json["sha256"] for line in lines
        }
        assert len(found) == 1

    def test_parameters_weights_seed_and_bits_reach_the_rule(self, run: Run, files: list[str]) -> None:
        def digest(*line: object) -> str:
            return run(*line, *files, "-o", "out.safetensors", "--json").json["sha256"]

        cap = ("weighted-mean", "--f", 1, "--param", "cap=3", "--weights")
        assert digest(*cap, "3,3,3,3,3,3,9") == digest(*cap, "3, 3,3,3,3,3,3000") == digest("mean", "--f", 1)
        assert digest(*cap, "1,3,3,3,3,3,9") != digest("mean", "--f", 1)
        bucketing = ("median", "--f", 1, "--pre", "bucketing:s=2", "--seed")
        assert digest(*bucketing, 1) == digest(*bucketing, 1) != digest(*bucketing, 2)
        assert digest("median", "--f", 1, "--bits", 8) != digest("median", "--f", 1)

    def test_the_reference_of_centered_clipping_is_a_file_too(self, run: Run, files: list[str]) -> None:
        assert run("mean", *files[:3], "-o", "before.safetensors").code == 0
        line = ("centered-clipping", *files, "--f", 2, "--param", "tau=0.5", "--param", "history=1")
        assert run(*line, "--reference", "before.safetensors", "-o", "out.safetensors").code == 0
        before, after = load_file("before.safetensors"), load_file("out.safetensors")
        moved = sum(float(((after[name] - before[name]) ** 2).sum()) for name in before) ** 0.5
        assert 0 < moved < 0.51

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    def test_other_float_types_become_float32(self, run: Run, dtype: torch.dtype) -> None:
        for index in (1, 2, 3):
            save_tensors(
                {"w": torch.arange(4).to(dtype) * index, "s": torch.tensor(0.5).to(dtype)}, f"{index}.st"
            )
        assert run("median", "1.st", "2.st", "3.st", "--f", 1, "-o", "out.safetensors").code == 0
        found = load_file("out.safetensors")
        assert found["w"].tolist() == [0, 2, 4, 6]
        assert found["s"].dtype == np.float32
        assert found["s"].tolist() == 0.5

    def test_tensors_longer_than_a_block_are_read_whole(self, run: Run) -> None:
        long = np.arange(2 * BLOCK + 5, dtype=np.float32)
        for index in range(3):
            save_file({"w": long + index, "z": np.full(2, index, np.float32)}, f"{index}.st")
        assert run("median", "0.st", "1.st", "2.st", "-o", "out.safetensors").code == 0
        assert np.abs(load_file("out.safetensors")["w"] - long - 1).max() <= 2.0**4
        assert load_file("out.safetensors")["z"].tolist() == [1, 1]

    def test_an_existing_output_is_replaced_and_as_open_as_the_umask_says(
        self, run: Run, files: list[str]
    ) -> None:
        Path("out.safetensors").write_text("old")
        assert run("mean", *files, "-o", "out.safetensors").code == 0
        assert len(load_file("out.safetensors")) == 3
        Path("plain").touch()
        assert Path("out.safetensors").stat().st_mode == Path("plain").stat().st_mode

    def test_encoded_updates_go_to_the_scratch_folder_and_disappear(
        self, run: Run, files: list[str], tmp_path: Path
    ) -> None:
        (tmp_path / "scratch").mkdir()
        before = sorted(os.listdir())
        assert run("mean", *files, "--scratch", "scratch", "-o", "out.safetensors").code == 0
        assert sorted(os.listdir()) == sorted([*before, "out.safetensors"])
        assert os.listdir("scratch") == []

    def test_memory_is_about_the_result(self, run: Run) -> None:
        for index in range(8):
            save_file({"w": np.full(2**20, index, np.float32)}, f"{index}.st")
        tracemalloc.start()
        try:
            line = [f"{index}.st" for index in range(8)]
            assert (
                run("median", *line, "--threads", 1, "--backend", "numpy", "-o", "out.safetensors").code == 0
            )
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 4 * 2**20 + 20 * 2**20


class TestList:
    def test_every_rule_and_preaggregator_is_listed(self, run: Run) -> None:
        shown = run("--list").out
        for name in (*RULES, *PREAGGREGATORS):
            assert f"\n{name}" in f"\n{shown}"
        assert "krum: n >= 2f + 3; parameters excluded, power" in shown

    def test_json_lists_the_same(self, run: Run) -> None:
        found = run("--list", "--json").json
        assert list(found["rules"]) == list(RULES)
        assert list(found["pre"]) == list(PREAGGREGATORS)
        assert "must be given" in found["rules"]["centered-clipping"]["parameters"]["tau"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("", "name a rule"),
            ("mean", "there are no updates"),
            ("meen 0.safetensors -o out.safetensors", "no rule 'meen'"),
            ("mean 0.safetensors", "with -o"),
            ("krum 0.safetensors 1.safetensors -o out.safetensors", "krum with f = 0 needs 3 updates"),
            ("mean 0.safetensors --f 1 -o out.safetensors", "nobody honest"),
            ("mean 0.safetensors --pre nmn -o out.safetensors", "no pre-aggregator 'nmn'"),
            ("mean 0.safetensors --param cap -o out.safetensors", "--param cap: expected KEY=VALUE"),
            ("mean 0.safetensors --param x=1 -o out.safetensors", "no parameter 'x'"),
            ("mean 0.safetensors --weights 1 -o out.safetensors", "only with the parameter cap"),
            ("weighted-mean 0.safetensors --param cap=5 -o out.safetensors", "needs weights"),
            ("weighted-mean 0.safetensors --param cap=5 --weights 1,2 -o out.safetensors", "2 weights for 1"),
            ("weighted-mean 0.safetensors --param cap=5 --weights -1 -o out.safetensors", "--weights -1"),
            ("weighted-mean 0.safetensors --param cap=5 --weights x -o out.safetensors", "--weights x"),
            ("mean 0.safetensors --reference 1.safetensors -o out.safetensors", "mean reads no reference"),
            (
                "centered-clipping 0.safetensors --param tau=1 --param history=1 -o out.safetensors",
                "give it as reference",
            ),
            ("monna 0.safetensors --param pivot=9 -o out.safetensors", "pivot"),
            ("mean 0.safetensors -o 0.safetensors", "is one of the inputs"),
            ("mean 0.safetensors -o ./linked", "is one of the inputs"),
            ("mean 0.safetensors -o nowhere/out.safetensors", "a folder that exists"),
            ("mean 0.safetensors -o .", "cannot be written"),
            ("mean 0.safetensors --scratch nowhere -o out.safetensors", "nowhere: No such file"),
            ("mean nothing.st -o out.safetensors", "nothing.st cannot be read (No such file"),
            ("mean folder -o out.safetensors", "folder is no file"),
        ],
    )
    def test_wrong_usage_is_one_sentence_and_leaves_nothing(
        self, run: Run, files: list[str], line: str, words: str
    ) -> None:
        os.symlink("0.safetensors", "linked")
        Path("folder").mkdir()
        content = Path("0.safetensors").read_bytes()
        assert words in refusal(run(*line.split()))
        assert Path("0.safetensors").read_bytes() == content

    def test_an_option_that_click_refuses_ends_with_two_too(self, run: Run, files: list[str]) -> None:
        for line in ("--f -1", "--bits 12", "--backend abacus", "--threads 0", "--seed x"):
            assert run("mean", *files, "-o", "out.safetensors", *line.split()).code == 2

    def test_other_names_and_shapes_are_named_with_file_and_tensor(self, run: Run, files: list[str]) -> None:
        full = tensors(0)
        save_file({name: full[name] for name in ("layer.weight", "scale")}, "less.st")
        save_file({**full, "more": full["scale"]}, "more.st")
        save_file({**full, "layer.bias": np.zeros(6, np.float32)}, "other.st")
        line = ("mean", *files, "-o", "out.safetensors")
        assert "less.st lacks tensor 'layer.bias', which 0.safetensors has" in refusal(run(*line, "less.st"))
        assert "more.st has tensor 'more', which 0.safetensors lacks" in refusal(run(*line, "more.st"))
        assert "other.st: tensor 'layer.bias' has shape (6,)" in refusal(run(*line, "other.st"))

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_value_that_is_not_finite_is_named_with_file_and_tensor(
        self, run: Run, files: list[str], value: float
    ) -> None:
        bad = tensors(1)
        bad["layer.bias"][3] = value
        save_file(bad, "bad.st")
        words = refusal(run("median", *files, "bad.st", "--f", 1, "-o", "out.safetensors"))
        assert f"bad.st: tensor 'layer.bias': value 3 is {value}" in words

    @pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
    def test_integers_are_refused_with_file_and_tensor(self, run: Run, dtype: type) -> None:
        save_file({"steps": np.ones(2, dtype)}, "a.st")
        assert "a.st: tensor 'steps' is " in refusal(run("mean", "a.st", "-o", "out.safetensors"))

    def test_empty_tensors_and_files_are_refused(self, run: Run) -> None:
        save_file({"w": np.zeros((0, 3), np.float32)}, "a.st")
        save_file({}, "b.st")
        assert "a.st: tensor 'w' has dimension 0" in refusal(run("mean", "a.st", "-o", "out.safetensors"))
        assert "b.st holds no tensors" in refusal(run("mean", "b.st", "-o", "out.safetensors"))

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{}",
            b"\xff" * 8,
            struct.pack("<Q", 2**40) + b"{}",
            struct.pack("<Q", 2) + b"{]",
            b'\x40\0\0\0\0\0\0\0{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}',
            b'\x4b\0\0\0\0\0\0\0{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}1234',
        ],
    )
    def test_a_header_that_lies_is_one_sentence_and_takes_no_memory(self, run: Run, content: bytes) -> None:
        Path("bad.st").write_bytes(content)
        run("mean", "bad.st", "-o", "out.safetensors")
        tracemalloc.start()
        try:
            outcome = run("mean", "bad.st", "-o", "out.safetensors")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert "bad.st is no whole safetensors file" in refusal(outcome)
        assert peak < 10 * 2**20

    def test_a_truncated_file_is_one_sentence(self, run: Run, files: list[str]) -> None:
        content = Path(files[0]).read_bytes()
        for length in (7, 8, 40, len(content) - 1):
            Path("cut.st").write_bytes(content[:length])
            assert "cut.st is no whole" in refusal(run("mean", "cut.st", "-o", "out.safetensors"))

    def test_the_operating_system_refusing_to_write_leaves_nothing(
        self, run: Run, files: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*arguments: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(tensor_files.os, "replace", full)
        words = refusal(run("mean", *files, "-o", "out.safetensors"))
        assert "out.safetensors cannot be written" in words
        assert "free some space" in words

    def test_a_disk_without_room_for_the_encoded_updates_is_refused_before_work(
        self, run: Run, files: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda path: _Free(100))
        assert "has 100 bytes free, the encoded updates take" in refusal(
            run("mean", *files, "-o", "out.safetensors")
        )

    @pytest.mark.parametrize("limit", [150_000, 250_000])
    def test_a_disk_that_fills_up_leaves_the_old_output(self, tmp_path: Path, limit: int) -> None:
        for index in range(3):
            save_file({"w": np.ones(100_000, np.float32)}, tmp_path / f"{index}.st")
        (tmp_path / "out.st").write_text("old")
        line = ["aggregate", "mean", "0.st", "1.st", "2.st", "-o", "out.st", "--backend", "numpy"]
        ended = subprocess.run(
            [sys.executable, "-m", "folkmoot.node.cli", *line],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        assert ended.returncode == 2, ended.stderr
        assert "free some space" in ended.stderr
        assert ended.stderr.count("\n") == 1
        assert (tmp_path / "out.st").read_text() == "old"
        assert sorted(os.listdir(tmp_path)) == ["0.st", "1.st", "2.st", "out.st"]


@dataclass(frozen=True)
class _Free:
    free: int


class TestTensorFile:
    def test_a_file_that_changes_after_it_was_opened_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.st"
        save_file({"w": np.ones(4, np.float32)}, path)
        opened = TensorFile.open(path)
        save_file({"w": np.ones(5, np.float32)}, path)
        with pytest.raises(NodeError, match="changed while it was read"):
            list(opened.blocks(10))

    def test_a_file_that_disappears_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.st"
        save_file({"w": np.ones(4, np.float32)}, path)
        opened = TensorFile.open(path)
        path.unlink()
        with pytest.raises(NodeError, match="cannot be read"):
            list(opened.blocks(10))

    def test_every_value_stands_where_the_library_reads_it(self, tmp_path: Path) -> None:
        path = tmp_path / "a.st"
        written = {"h": np.float16([1, 2, 3]), "d": np.float64([[4, 5]]), "s": np.array(6, np.float32)}
        save_file(written, path)
        opened = TensorFile.open(path)
        found: dict[str, list[float]] = {name: [] for name in opened.tensors}
        for index, start, block in opened.blocks(2):
            name = list(opened.tensors)[index]
            assert start == len(found[name])
            found[name] += block.tolist()
        assert found == {"d": [4, 5], "h": [1, 2, 3], "s": [6]}

    def test_thousands_of_spoilt_files_are_read_or_refused_by_name(self, tmp_path: Path) -> None:
        whole = tmp_path / "whole.st"
        save_file(tensors(0), whole)
        content, path = whole.read_bytes(), tmp_path / "spoilt.st"
        refused = 0
        tracemalloc.start()
        try:
            for seed in range(SEED, SEED + CASES):
                path.write_bytes(spoilt(content, seed))
                try:
                    opened = TensorFile.open(path)
                    layout = opened.layout()
                    sizes = [0] * len(layout.tensors)
                    for index, start, block in opened.blocks(BLOCK):
                        sizes[index] += block.size
                        largest_magnitude(block, "spoilt.st", start)
                except (NodeError, AggregationError):
                    refused += 1
                    continue
                except BaseException as error:
                    error.add_note(f"replay with spoilt(content, {seed})")
                    raise
                assert sizes == [tensor.size for tensor in layout.tensors], f"spoilt(content, {seed})"
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 10 * 2**20
        assert CASES // 3 < refused < CASES


def spoilt(content: bytes, seed: int) -> bytes:
    """A file with a few bytes changed, cut, grown, or with another length or number in its header."""
    rng = random.Random(seed)
    kind, data = rng.randrange(6), bytearray(content)
    header = struct.unpack("<Q", content[:8])[0]
    if kind == 0:
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(8 + header)] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[rng.randrange(len(data)) :]
    elif kind == 2:
        data += rng.randbytes(rng.randint(1, 32))
    elif kind == 3:
        data[:8] = struct.pack("<Q", rng.choice([0, 1, header - 1, header + 1, 2**32, 2**40, 2**64 - 1]))
    elif kind == 4:
        data[8 + header :] = rng.randbytes(len(data) - 8 - header)
    else:
        numbers = [i for i in range(8, 8 + header) if chr(data[i]).isdigit()]
        for _ in range(rng.randint(1, 3)):
            data[rng.choice(numbers)] = ord(rng.choice("0123456789"))
    return bytes(data)
