"""The command line as a member uses it: exit codes, one sentence on stderr, nothing half-written."""

from __future__ import annotations

import errno
import importlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from folkmoot.contracts.types import LedgerRefused, LedgerUnreachable
from folkmoot.node import cli
from folkmoot.node.cli.failure import report
from folkmoot.node.config import load
from folkmoot.node.errors import BASES, BY_NAME, ExitCode, NodeError, exit_code_of
from folkmoot.node.home import Home
from folkmoot.node.identity import load_identity
from folkmoot.node.journal import Journal


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
    """Runs one command line in this process, with the passphrase in a file."""
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse\n")
    monkeypatch.setenv("FOLKMOOT_PASSPHRASE_FILE", str(secret))
    monkeypatch.chdir(tmp_path)

    def run_line(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = cli.execute([str(a) for a in arguments])
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run_line


def one_sentence(outcome: Outcome) -> str:
    assert outcome.err.startswith("folkmoot: ")
    assert outcome.err.count("\n") == 1
    assert "Traceback" not in outcome.err
    return outcome.err


def commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(cli.cli)
    for name in cli.cli.list_commands(context):
        command = cli.cli.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            for inner, below in command.commands.items():
                yield f"{name} {inner}", below


def test_every_command_has_help_with_an_example() -> None:
    names = []
    for name, command in commands():
        names.append(name)
        assert command.help, name
        assert f"folkmoot {name.split()[0]}" in command.help, name
        assert "Example:" in command.help, name
    assert "member rotate" in names


def test_the_list_of_commands_says_what_the_commands_say() -> None:
    context = click.Context(cli.cli)
    for name, lazy in cli.cli.lazy.items():
        command = cli.cli.get_command(context, name)
        assert command is not None
        assert command.get_short_help_str(100) == lazy.summary


def test_help_imports_nothing_heavy_and_answers_at_once() -> None:
    script = (
        "import sys\nfrom folkmoot.node.cli import execute\ncode = execute(['--help'])\n"
        "heavy = {'torch', 'numpy', 'libp2p', 'web3', 'eth', 'rich', 'sklearn'} & set(sys.modules)\n"
        "assert code == 0 and not heavy, heavy"
    )
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "folkmoot init hospital-a" in ended.stdout
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "line",
    ["frobnicate", "init", "init a --shout", "task show x", "member remove 999", "chain --port 99999"],
)
def test_wrong_usage_ends_with_two(run: Run, line: str) -> None:
    outcome = run(*line.split())
    assert outcome.code == 2
    assert "Usage:" in outcome.err


def test_version_and_help_end_with_zero(run: Run) -> None:
    assert re.fullmatch(r"folkmoot \d+\.\d+\.\d+\n", run("--version").out)
    assert run("chain", "deploy", "--help").code == 0


class TestInit:
    def test_makes_a_home_that_opens(self, run: Run, tmp_path: Path) -> None:
        outcome = run("init", "hospital-a", "--key-cost", "light", "--json")
        assert outcome.code == 0
        home = Home(tmp_path / "hospital-a")
        identity = load_identity(home.keys, "correct horse")
        assert outcome.json["signer"] == identity.signer
        assert load(home.config).node.name == "hospital-a"
        assert json.loads(home.card.read_text())["signer"] == identity.signer
        assert home.path.stat().st_mode & 0o077 == 0

    def test_says_what_comes_next_and_shows_no_secret(self, run: Run, tmp_path: Path) -> None:
        outcome = run("init", "a", "--key-cost", "light")
        identity = load_identity(tmp_path / "a" / "keys", "correct horse")
        assert "folkmoot run --home a" in outcome.out
        assert identity.signer in outcome.out
        assert "correct horse" not in outcome.out + outcome.err
        assert identity.signer_key.hex() not in outcome.out

    def test_refuses_what_is_there_already(self, run: Run, tmp_path: Path) -> None:
        run("init", "a", "--key-cost", "light")
        before = {p: p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()}
        outcome = run("init", "a", "--key-cost", "light")
        assert outcome.code == 2
        assert "homes are never overwritten" in one_sentence(outcome)
        assert {p: p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()} == before

    def test_takes_an_empty_directory_but_no_file(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "file").touch()
        assert run("init", "empty", "--key-cost", "light").code == 0
        assert run("init", "file", "--key-cost", "light").code == 2
        assert run("init", "file/below", "--key-cost", "light").code == 2

    def test_leaves_nothing_behind_when_the_disk_is_full(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("folkmoot.node.home.os.fsync", full)
        outcome = run("init", "a", "--key-cost", "light")
        assert outcome.code == 2
        assert "No space left on device" in one_sentence(outcome)
        assert [p.name for p in tmp_path.iterdir()] == ["passphrase"]

    @pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\n", b"x" * 100_000])
    def test_needs_a_passphrase(self, run: Run, tmp_path: Path, content: bytes | None) -> None:
        file = tmp_path / "bad"
        if content is not None:
            file.write_bytes(content)
        outcome = run("init", "a", "--passphrase-file", file)
        assert outcome.code == 2
        assert str(file) in one_sentence(outcome)
        assert not (tmp_path / "a").exists()

    def test_does_not_wait_for_a_passphrase_without_a_terminal(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("FOLKMOOT_PASSPHRASE_FILE")
        outcome = run("init", "a")
        assert outcome.code == 2
        assert "FOLKMOOT_PASSPHRASE_FILE" in one_sentence(outcome)


class TestStatus:
    def test_tells_whether_the_node_runs(self, run: Run, tmp_path: Path) -> None:
        run("init", "a", "--key-cost", "light")
        home = Home(tmp_path / "a")
        assert run("status", "--home", "a").code == 1
        home.write_status({"phase": "train", "tasks": {"1": {"round": 3}}, "peers": ["x", "y"]})
        with Journal(home.journal):
            outcome = run("status", "--home", "a", "--json")
            text = run("status", "--home", "a").out
        assert outcome.code == 0
        assert outcome.json["running"] is True
        assert outcome.json["status"]["tasks"]["1"]["round"] == 3
        assert "tasks.1.round" in text
        assert "x, y" in text
        stopped = run("status", "--home", "a", "--json")
        assert (stopped.code, stopped.json["running"]) == (1, False)

    def test_names_a_damaged_account(self, run: Run, tmp_path: Path) -> None:
        run("init", "a", "--key-cost", "light")
        Home(tmp_path / "a").status.write_bytes(b"{half")
        outcome = run("status", "--home", "a")
        assert outcome.code == 2
        assert "delete it" in one_sentence(outcome)

    def test_a_folder_that_is_no_home_is_named(self, run: Run) -> None:
        outcome = run("status", "--home", "nowhere")
        assert outcome.code == 2
        assert "folkmoot init" in one_sentence(outcome)

    def test_a_wrong_configuration_key_is_named_with_its_line(self, run: Run, tmp_path: Path) -> None:
        run("init", "a", "--key-cost", "light")
        config = tmp_path / "a" / "config.toml"
        config.write_text("[chain]\nrcp = 1\n")
        outcome = run("status", "--home", "a")
        assert outcome.code == 2
        assert "config.toml, line 2: unknown option rcp in [chain]: did you mean rpc?" in one_sentence(
            outcome
        )


class TestFailure:
    def test_a_fault_of_ours_leaves_its_trace_in_the_log(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        log = tmp_path / "folkmoot.log"
        assert report(ZeroDivisionError("by zero"), debug=False, log=log) is ExitCode.FAILED
        shown = capsys.readouterr().err
        assert shown.count("\n") == 1
        assert str(log) in shown
        assert "ZeroDivisionError: by zero" in log.read_text()

    def test_without_a_log_the_trace_goes_to_a_file_that_is_named(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        report(ZeroDivisionError("by zero"), debug=False, log=None)
        found = re.search(r"trace is in (\S+)", capsys.readouterr().err)
        assert found
        trace = Path(found[1])
        assert "ZeroDivisionError" in trace.read_text()
        trace.unlink()

    def test_debug_shows_the_trace(self, capsys: pytest.CaptureFixture[str]) -> None:
        report(NodeError("no"), debug=True, log=None)
        assert "NodeError: no" in capsys.readouterr().err

    def test_a_group_of_failures_says_each_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        group = ExceptionGroup(
            "nursery",
            [ExceptionGroup("inner", [LedgerUnreachable("gone"), NodeError("no")]), NodeError("no")],
        )
        assert report(group, debug=False, log=None) is ExitCode.UNREACHABLE
        assert capsys.readouterr().err == "folkmoot: gone\nfolkmoot: no\n"

    def test_a_refusal_of_the_contract_comes_with_the_way_out(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        report(LedgerRefused("AlreadyApproved", ("0x01", 2)), debug=False, log=None)
        assert "the others are to" in capsys.readouterr().err

    def test_a_keyboard_interrupt_ends_with_130(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert report(KeyboardInterrupt(), debug=False, log=None) == 130
        assert capsys.readouterr().err == "folkmoot: stopped\n"

    def test_every_error_that_has_an_exit_code_exists(self) -> None:
        defined = set()
        for room in ("aggregation", "contracts", "node", "p2p", "privacy"):
            package = importlib.import_module(f"folkmoot.{room}")
            for source in Path(package.__path__[0]).rglob("*.py"):
                if "node_modules" not in source.parts:
                    defined |= set(re.findall(r"^class (\w+)", source.read_text(), re.MULTILINE))
        assert BY_NAME.keys() | BASES <= defined

    def test_a_class_of_another_package_with_our_name_is_not_ours(self) -> None:
        stranger = type("LedgerUnreachable", (Exception,), {"__module__": "elsewhere"})
        assert exit_code_of(stranger()) is ExitCode.FAILED
