"""`folkmoot aggregate`: apply a rule to safetensors files, for those who only want the rules.

Two readings of the files, block by block: one finds the lattice, one writes every update on it to a folder.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from folkmoot.aggregation.backend import BACKENDS, load_backend
from folkmoot.aggregation.errors import AggregationError
from folkmoot.aggregation.exact import values_and_decision
from folkmoot.aggregation.float_blocks import BLOCK, largest_magnitude, lattice_for, quantize_block, widened
from folkmoot.aggregation.interface import processors, require_inputs, require_reference, seed_bytes
from folkmoot.aggregation.lattice import Lattice
from folkmoot.aggregation.layout import Layout
from folkmoot.aggregation.passes import Passes
from folkmoot.aggregation.plans import Combination, Decision
from folkmoot.aggregation.rules import PREAGGREGATORS, RULES, Preaggregator, Rule, RuleSpec, rule_spec
from folkmoot.aggregation.update_codec import encoded_header, update_size
from folkmoot.node.cli.access import json_option, print_json
from folkmoot.node.errors import FileProblem, UsageProblem
from folkmoot.node.tensor_files import TensorFile, write_tensors

__all__ = ["aggregate"]

_Advance = Callable[[str, int], None]
"""Called with what is done at the moment and how many values more are done."""


@dataclass(frozen=True, slots=True)
class _Work:
    """What was asked for, checked as far as the headers of the files tell."""

    spec: RuleSpec
    files: tuple[TensorFile, ...]
    reference: TensorFile | None
    layout: Layout
    weights: list[int] | None
    bits: int
    seed: bytes
    backend: str
    threads: int
    output: Path


@click.command(short_help="Apply a rule to safetensors files.")
@click.argument("rule", required=False)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--f", "f", type=click.IntRange(0, 255), default=0, show_default=True, help="Liars to survive.")
@click.option("--pre", multiple=True, metavar="NAME[:KEY=VALUE]", help="A pre-aggregator; repeat for more.")
@click.option("--param", "params", multiple=True, metavar="KEY=VALUE", help="A parameter of the rule.")
@click.option("--weights", metavar="N,N,…", help="Examples that each file claims, for rules with a cap.")
@click.option(
    "--bits", type=click.Choice(["8", "16"]), default="16", show_default=True, help="Of the lattice."
)
@click.option("--backend", type=click.Choice(["auto", *BACKENDS]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1, 256), help="All processors if left out.")
@click.option(
    "--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True, help="For bucketing."
)
@click.option("--reference", type=click.Path(path_type=Path), help="The aggregate before, for history=1.")
@click.option(
    "--scratch",
    type=click.Path(path_type=Path),
    help="Folder for the encoded updates (bits/8 bytes a value and file); beside the output if left out.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where the result goes.")
@click.option("--list", "listing", is_flag=True, help="Show the rules and pre-aggregators, and stop.")
@json_option
def aggregate(listing: bool, as_json: bool, scratch: Path | None, **asked: Any) -> None:
    """Apply RULE to two or more safetensors FILES of floats with the same tensors; the result is float32.

    The files are read in blocks, so memory is about the result. From the lattice on every sum is exact: the
    same files give the same bytes on every machine. An existing output is replaced in one step.

    \b
    Example:
      folkmoot aggregate trimmed-mean a.safetensors b.safetensors c.safetensors --f 1 -o mean.safetensors
      folkmoot aggregate krum *.safetensors --f 2 --pre nnm --pre clipping:tau=1.5 -o krum.safetensors
      folkmoot aggregate weighted-mean a.safetensors b.safetensors --weights 9,2 --param cap=5 -o w.st
      folkmoot aggregate --list
    """
    if listing:
        _show_rules(as_json)
        return
    began = time.monotonic()
    try:
        work = _checked(**asked)
        with _scratch_folders(work, scratch) as (encoded, beside), _progress(work) as advance:
            flat, decision = _apply(work, encoded, advance)
            advance("writing", 0)
            write_tensors(_named(flat, work.layout), work.output, beside)
    except AggregationError as error:
        raise UsageProblem(str(error)) from error
    found = _findings(work, flat, decision, time.monotonic() - began)
    if as_json:
        print_json(found)
    else:
        _show(found)


def _checked(
    rule: str | None,
    files: tuple[Path, ...],
    f: int,
    pre: tuple[str, ...],
    params: tuple[str, ...],
    weights: str | None,
    bits: str,
    backend: str,
    threads: int | None,
    seed: int,
    reference: Path | None,
    output: Path | None,
) -> _Work:
    """Raises UsageProblem, FileProblem, AggregationError."""
    if rule is None:
        raise UsageProblem("name a rule; folkmoot aggregate --list shows them")
    spec = rule_spec(rule, f, _parameters(params), pre)
    claims = require_inputs(spec, len(files), _integers(weights))
    require_reference(spec, reference)
    load_backend(backend)
    if output is None:
        raise UsageProblem("name the file for the result with -o")
    _require_place(output, (*files, *([] if reference is None else [reference])))
    opened = tuple(TensorFile.open(path) for path in files)
    before = None if reference is None else TensorFile.open(reference)
    for other in (*opened[1:], *([] if before is None else [before])):
        other.require_like(opened[0])
    return _Work(
        spec,
        opened,
        before,
        opened[0].layout(),
        claims,
        int(bits),
        seed_bytes(seed),
        backend,
        processors() if threads is None else threads,
        output,
    )


def _parameters(texts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name in found:
            raise UsageProblem(f"--param {text}: expected KEY=VALUE, each key once")
        found[name] = value
    return found


def _integers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    words = text.split(",")
    if not all(word.strip().isascii() and word.strip().isdigit() and len(word) < 20 for word in words):
        raise UsageProblem(f"--weights {text}: expected whole numbers with commas between, such as 100,20")
    return [int(word) for word in words]


def _require_place(output: Path, inputs: Sequence[Path]) -> None:
    if output.is_dir() or not output.parent.is_dir():
        raise FileProblem(f"{output} cannot be written: name a file in a folder that exists")
    for path in inputs:
        if output.exists() and path.exists() and output.samefile(path):
            raise UsageProblem(f"{output} is one of the inputs: name another file for the result")


@contextmanager
def _scratch_folders(work: _Work, scratch: Path | None) -> Iterator[tuple[Path, Path]]:
    """A folder for encoded updates, and one beside the output; both go whatever happens."""
    count = len(work.files) + (work.reference is not None)
    needed = count * update_size(work.layout, work.bits)
    parent = work.output.parent if scratch is None else scratch
    try:
        if (free := shutil.disk_usage(parent).free) < needed:
            raise FileProblem(
                f"{parent} has {free} bytes free, the encoded updates take {needed}: "
                "free some space or name another folder with --scratch"
            )
        with (
            tempfile.TemporaryDirectory(prefix=".folkmoot-aggregate-", dir=parent) as encoded,
            tempfile.TemporaryDirectory(prefix=".folkmoot-aggregate-", dir=work.output.parent) as beside,
        ):
            yield Path(encoded), Path(beside)
    except OSError as error:
        raise FileProblem(
            f"{error.filename or parent}: {error.strerror or error}; "
            "free some space or name another folder with --scratch"
        ) from error


@contextmanager
def _progress(work: _Work) -> Iterator[_Advance]:
    console = Console(stderr=True)
    total = (2 * len(work.files) + 1) * work.layout.size
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=total)
        yield lambda doing, values: bar.update(task, description=doing, advance=values)


def _apply(work: _Work, scratch: Path, advance: _Advance) -> tuple[npt.NDArray[np.float32], Decision]:
    magnitudes = np.stack([_magnitudes(file, advance) for file in work.files])
    lattice = lattice_for(magnitudes, work.layout, work.spec.f, work.bits)
    if work.reference is not None:
        lattice = widened(lattice, _magnitudes(work.reference, advance), work.layout)
    sources = []
    for index, file in enumerate(work.files):
        sources.append(scratch / f"update-{index}")
        _encode(file, sources[-1], work.layout, lattice, advance)
    reference = None
    if work.reference is not None:
        reference = scratch / "reference"
        _encode(work.reference, reference, work.layout, lattice, advance)
    advance(work.spec.name, 0)
    passes = Passes(load_backend(work.backend), work.threads, None)
    return values_and_decision(
        sources,
        work.layout,
        lattice,
        work.spec,
        passes,
        weights=work.weights,
        seed=work.seed,
        reference=reference,
    )


def _magnitudes(file: TensorFile, advance: _Advance) -> npt.NDArray[np.float32]:
    """The largest magnitude of each tensor. Raises NotFinite and BoundExceeded that name the file."""
    names = tuple(file.tensors)
    peaks = np.zeros(len(names), np.float32)
    for index, start, block in file.blocks(BLOCK):
        peak = largest_magnitude(block, f"{file.path}: tensor {names[index]!r}", start)
        peaks[index] = max(float(peaks[index]), peak)
        advance("reading", block.size)
    return peaks


def _encode(file: TensorFile, path: Path, layout: Layout, lattice: Lattice, advance: _Advance) -> None:
    with path.open("wb") as stream:
        stream.write(encoded_header(layout, lattice))
        for index, _, block in file.blocks(BLOCK):
            stream.write(quantize_block(block, lattice.exponents[index], lattice.bits).data)
            advance("encoding", block.size)


def _named(flat: npt.NDArray[np.float32], layout: Layout) -> dict[str, npt.NDArray[np.float32]]:
    """Views of the flat vector, so that no second copy of the result is made."""
    return {
        tensor.name: flat[layout.offsets[index] : layout.offsets[index + 1]].reshape(tensor.shape)
        for index, tensor in enumerate(layout.tensors)
    }


def _kept(decision: Decision, count: int) -> set[int] | None:
    """Indices of the updates that the rule lets count; None when it takes something of every one."""
    kept: set[int] | None = None
    if isinstance(decision.plan, Combination):
        kept = {index for index, weight in enumerate(decision.plan.weights[:count]) if weight}
    elif decision.mixing is not None:
        columns = list(zip(*decision.mixing.rows, strict=True))[:count]
        kept = {index for index, column in enumerate(columns) if any(column)}
    return kept if kept is not None and len(kept) < count else None


def _findings(
    work: _Work, flat: npt.NDArray[np.float32], decision: Decision, seconds: float
) -> dict[str, object]:
    kept = _kept(decision, len(work.files))
    members = range(len(work.files))
    return {
        "rule": work.spec.canonical().decode("ascii"),
        "updates": len(work.files),
        "f": work.spec.f,
        "tensors": len(work.layout.tensors),
        "values": work.layout.size,
        "kept": None if kept is None else [str(work.files[i].path) for i in members if i in kept],
        "rejected": None if kept is None else [str(work.files[i].path) for i in members if i not in kept],
        "seconds": round(seconds, 3),
        "output": str(work.output),
        "sha256": hashlib.sha256(np.ascontiguousarray(flat, "<f4").data).hexdigest(),
    }


def _show(found: dict[str, Any]) -> None:
    click.echo(f"{found['rule']}: {found['updates']} updates, f = {found['f']}, {found['values']} values")
    for which in ("kept", "rejected"):
        if found[which] is not None:
            click.echo(f"  {which} {len(found[which])}: {', '.join(found[which])}")
    click.echo(f"  {found['output']} in {found['seconds']} s, SHA-256 of the values {found['sha256']}")


def _show_rules(as_json: bool) -> None:
    rules = {
        name: {"needs": _needs(rule), "parameters": _options(rule), "formula": _first_sentence(rule)}
        for name, rule in RULES.items()
    }
    before = {
        name: {"parameters": _options(entry), "formula": _first_sentence(entry)}
        for name, entry in PREAGGREGATORS.items()
    }
    if as_json:
        print_json({"rules": rules, "pre": before})
        return
    for name, rule in rules.items():
        click.echo(f"{name}: n >= {rule['needs']}{_in_words(rule['parameters'])}\n    {rule['formula']}")
    click.echo("\nbefore any rule, with --pre:")
    for name, entry in before.items():
        click.echo(f"{name}{_in_words(entry['parameters'])}\n    {entry['formula']}")


def _needs(rule: Rule) -> str:
    return f"{rule.slope}f + {rule.offset}" if rule.slope else f"{rule.offset}"


def _options(entry: Rule | Preaggregator) -> dict[str, str]:
    return {p.name: p.meaning if p.optional else f"{p.meaning} (must be given)" for p in entry.parameters}


def _in_words(options: object) -> str:
    return f"; parameters {', '.join(options)}" if isinstance(options, dict) and options else ""


def _first_sentence(entry: Rule | Preaggregator) -> str:
    return " ".join(entry.documentation.partition("\n\n")[0].split())
