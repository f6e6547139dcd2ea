"""The order of the house: which room imports which, how long a file may be, and what no file may say."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import click
import pytest
from click.testing import CliRunner

from folkmoot.node.cli import cli

ROOT: Final = Path(__file__).resolve().parents[1]

MAY_IMPORT: Final = {
    "aggregation": set(),
    "contracts": set(),
    "p2p": set(),
    "privacy": {"aggregation"},
    "node": {"aggregation", "contracts", "p2p", "privacy"},
    "experiments": {"aggregation", "contracts", "p2p", "privacy", "node"},
}
"""The rooms, each with the rooms below it."""

LONGEST_FILE, LONGEST_FUNCTION = 400, 60

LONGER: Final = {
    "node/runner.py": "one driver of one round: what the machine asks for, done",
}
"""Files and functions ("path::name") over the limit, each with its reason."""

FORBIDDEN: Final = {
    "the host of a package registry": r"(pypi|pythonhosted|npmjs|yarnpkg)\.(org|com)",
    "a folder of one machine": r"(?<![\w.$}/])/(work|root|tmp|home|Users)/\w",
    "a plan instead of work": r"\b(TODO|FIXME|XXX)\b",
    "talk about who wrote it": r"(?i)\b(sub-?agents?|helper sessions?|(this|that|my|another) session)\b",
}
IN_TESTS_TOO: Final = {"the host of a package registry", "a plan instead of work"}


def tracked(*patterns: str) -> list[Path]:
    """Files of the repository, new ones that git does not ignore included."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *patterns],
        cwd=ROOT, check=True, capture_output=True, timeout=30,
    ).stdout.decode()  # fmt: skip
    return sorted(Path(name) for name in set(listing.split("\0")) if name and (ROOT / name).is_file())


def parsed(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path))


def module_name(path: Path) -> str:
    return ".".join(["folkmoot", *path.with_suffix("").parts]).removesuffix(".__init__")


MODULES: Final = {module_name(p): p for room in MAY_IMPORT for p in tracked(f"{room}/*.py")}


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module of ours that a file imports, at the top or later, with the line."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports from folkmoot.<room> on"
            base = node.module or ""
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner in MODULES else base), node.lineno


def room_of(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    wrong = [
        f"{path}:{line} imports {target}"
        for module, path in MODULES.items()
        if room_of(module) == room
        for target, line in imports(path)
        if target.startswith("folkmoot.") and room_of(target) not in MAY_IMPORT[room] | {room}
    ]
    assert not wrong, f"{room} may import {sorted(MAY_IMPORT[room])} and itself"


def test_no_import_leads_back_to_where_it_came_from() -> None:
    graph = {
        module: {target for target, _ in imports(path) if target in MODULES and target != module}
        for module, path in MODULES.items()
    }
    assert circle(graph) == []


def test_a_circle_of_imports_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "a"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """A path of a graph that returns to its start; empty when there is none."""
    done: set[str] = set()

    def walk(place: str, path: list[str]) -> list[str]:
        if place in path:
            return [*path[path.index(place) :], place]
        if place in done:
            return []
        found = next((f for after in sorted(graph[place]) if (f := walk(after, [*path, place]))), [])
        done.add(place)
        return found

    return next((found for start in sorted(graph) if (found := walk(start, []))), [])


def test_files_and_functions_are_short_or_have_a_reason_not_to_be() -> None:
    long = set()
    for path in MODULES.values():
        if len((ROOT / path).read_text(encoding="utf-8").splitlines()) > LONGEST_FILE:
            long.add(str(path))
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION:
                    long.add(f"{path}::{node.name}")
    assert long == LONGER.keys()


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_names(what: str) -> None:
    files = tracked(
        "*.py", "*.sol", "*.md", "*.toml", "*.sh", "*.json", "*.txt", "scripts/*", ".ci/*", "contracts/bin/*"
    )
    files = [p for p in files if p != Path("tests/test_house.py") and "artifacts" not in p.parts]
    if what not in IN_TESTS_TOO:
        files = [p for p in files if p.parts[0] != "tests"]
    assert len(files) > 50
    found = [
        f"{path}:{number}: {line.strip()[:100]}"
        for path in files
        for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(FORBIDDEN[what], line)
    ]
    assert not found


def test_every_room_is_in_the_distribution() -> None:
    with (ROOT / "pyproject.toml").open("rb") as stream:
        packages = tomllib.load(stream)["tool"]["setuptools"]["packages"]
    assert set(packages) == {f"folkmoot.{'.'.join(p.parent.parts)}" for p in tracked("*/__init__.py")}


def test_every_folder_with_python_is_a_room_or_known_not_to_be() -> None:
    folders = {path.parts[0] for path in tracked("*.py")}
    assert folders == MAY_IMPORT.keys() | {"benchmarks", "tests"}


def test_every_room_is_linked_for_the_type_checker() -> None:
    setup = (ROOT / "scripts/setup").read_text(encoding="utf-8")
    listed = re.search(r"^rooms=\((.*)\)$", setup, re.MULTILINE)
    assert listed is not None
    assert set(listed[1].split()) == MAY_IMPORT.keys()


def test_the_readme_opens_with_its_two_commands() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    shown = lines[lines.index("```sh") + 1 : lines.index("```")]
    assert lines[:3] == ["# Folkmoot", "", "```sh"]
    assert [line.split()[0] for line in shown] == ["scripts/demo", "scripts/test"]


def test_the_readme_lists_the_commands_that_there_are() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `folkmoot (\w+)` \|", readme, re.MULTILINE)
    assert listed == cli.list_commands(click.Context(cli))


def test_the_readme_lists_the_folders_that_there_are() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)/` \|", readme, re.MULTILINE)
    hidden = {
        path.parts[0] for path in tracked() if len(path.parts) > 1 and not path.parts[0].startswith(".")
    }
    assert set(listed) == hidden


@pytest.mark.parametrize(
    "text", sorted(str(p) for p in tracked("README.md", "docs/*.md", "contracts/README.md"))
)
def test_links_between_the_documents_lead_somewhere(text: str) -> None:
    document = ROOT / text
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8"))
    assert [t for t in targets if not (document.parent / t).exists()] == []


def every_command(group: click.Group, context: click.Context) -> Iterator[tuple[list[str], click.Command]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, parent=context, info_name=name)
        yield [name], command
        if isinstance(command, click.Group):
            yield from (([name, *path], found) for path, found in every_command(command, inner))


def test_every_command_has_help_with_an_example() -> None:
    found = {" ".join(path): command for path, command in every_command(cli, click.Context(cli))}
    assert len(found) > 10
    lacking = []
    for name in found:
        shown = CliRunner().invoke(cli, [*name.split(), "--help"])
        assert shown.exit_code == 0
        if f"folkmoot {name}" not in shown.output.partition("Example:")[2]:
            lacking.append(name)
    assert lacking == []


def test_every_python_module_says_what_it_is() -> None:
    silent = [str(p) for p in MODULES.values() if not ast.get_docstring(parsed(p))]
    assert silent == []
