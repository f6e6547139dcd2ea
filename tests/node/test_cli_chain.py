"""Founding and governing a federation from the command line, on the embedded chain."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from folkmoot.contracts.chain import EmbeddedChain
from folkmoot.node import cli
from folkmoot.node.cli.init import make_home
from folkmoot.node.config import render
from folkmoot.node.home import Home
from folkmoot.node.identity import KeyCost, load_identity
from folkmoot.node.journal import Journal, JournalCorrupt, SlotKind

PASSPHRASE = "correct horse"

TASK = """
name = "cancer"
rounds = 2
[rule]
name = "trimmed-mean"
f = 1
[windows]
commit = 60
reveal = 30
attempt = 30
[model]
factory = "folkmoot.node.torch_trainer:create"
[model.options]
dataset = "breast-cancer"
members = 4
index = 0
"""


class Federation:
    """Four members and a newcomer with homes, and a chain with the contracts."""

    def __init__(self, folder: Path, rpc: str, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.rpc = rpc
        self._capfd = capfd
        (folder / "passphrase").write_text(PASSPHRASE)
        for name in "abcde":
            make_home(folder / name, PASSPHRASE, KeyCost.LIGHT, name)
            Home(folder / name).config.write_text(
                render({"chain": {"rpc": rpc, "deployment": "../deployment.toml", "timeout_seconds": 2.0}})
            )

    def home(self, name: str) -> Home:
        return Home(self.folder / name)

    def signer(self, name: str) -> str:
        return load_identity(self.home(name).keys, PASSPHRASE).signer

    def run(self, *arguments: object, home: str | None = None, code: int = 0) -> Any:
        """The JSON that a command printed, or its error when another code than 0 is expected."""
        self._capfd.readouterr()
        place = ["--home", str(self.folder / home)] if home else []
        ended = cli.execute([*map(str, arguments), *place, *([] if code else ["--json"])])
        captured = self._capfd.readouterr()
        assert ended == code, captured.err
        return captured.err if code else json.loads(captured.out)

    def found(self) -> dict[str, Any]:
        cards = [self.home(name).card for name in "abcd"]
        out = self.folder / "deployment.toml"
        document: dict[str, Any] = self.run("chain", "deploy", "--rpc", self.rpc, "--out", out, *cards)
        return document


@pytest.fixture
def federation(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Federation]:
    monkeypatch.setenv("FOLKMOOT_PASSPHRASE_FILE", str(tmp_path / "passphrase"))
    with EmbeddedChain(None) as chain:
        yield Federation(tmp_path, chain.url, capfd)


def test_founding_seats_the_cards_in_order(federation: Federation) -> None:
    deployed = federation.found()
    listed = federation.run("member", "list", home="a")
    assert deployed["chain_id"] == 31_337
    assert (listed["epoch"], listed["quorum"]) == (1, 3)
    assert [m["signer"] for m in listed["members"]] == [federation.signer(name) for name in "abcd"]
    assert {m["role"] for m in listed["members"]} == {"member"}


def test_a_deployment_is_never_overwritten_and_needs_four_members(federation: Federation) -> None:
    federation.found()
    cards = [federation.home(name).card for name in "abcd"]
    out = federation.folder / "deployment.toml"
    assert "never overwritten" in federation.run("chain", "deploy", "--out", out, *cards, code=2)
    other = federation.folder / "other.toml"
    assert "too few" in federation.run("chain", "deploy", "--out", other, *cards[:3], code=2)
    assert not other.exists()


def test_a_forged_card_founds_nothing(federation: Federation) -> None:
    card = federation.home("d").card
    card.write_text(json.dumps(json.loads(card.read_text()) | {"box_key": "11" * 32}))
    cards = [federation.home(name).card for name in "abcd"]
    out = federation.folder / "deployment.toml"
    error = federation.run("chain", "deploy", "--rpc", federation.rpc, "--out", out, *cards, code=2)
    assert "not signed by that peer" in error
    assert not out.exists()


def test_a_newcomer_is_admitted_by_a_quorum_and_removed_again(federation: Federation) -> None:
    federation.found()
    first = federation.run("member", "propose", federation.home("e").card, home="a")
    assert (first["executed"], first["approvals"], first["needed"]) == (False, 1, 3)
    pending = federation.run("member", "list", home="b")["pending"]
    assert [(p["kind"], p["index"], p["approvals"]) for p in pending] == [("member", 4, 1)]
    action = first["action"][:8]
    assert "AlreadyApproved" in federation.run("member", "vote", action, home="a", code=1)
    assert federation.run("member", "vote", action, home="b")["executed"] is False
    assert federation.run("member", "vote", action, home="c")["executed"] is True
    listed = federation.run("member", "list", home="e")
    assert listed["members"][4]["signer"] == federation.signer("e")
    assert (listed["epoch"], listed["pending"]) == (2, [])
    for name, executed in (("a", False), ("b", False), ("c", False), ("e", True)):
        assert federation.run("member", "remove", 4, home=name)["executed"] is executed
    assert [m["index"] for m in federation.run("member", "list", home="a")["members"]] == [0, 1, 2, 3]


def test_a_newcomer_alone_decides_nothing(federation: Federation) -> None:
    federation.found()
    error = federation.run("member", "propose", federation.home("e").card, home="e", code=1)
    assert "NotAMember" in error
    assert "only the owner of a member's seat decides" in error


def test_a_vote_needs_one_pending_action(federation: Federation) -> None:
    federation.found()
    assert "expected one; pending: none" in federation.run("member", "vote", "ab", home="a", code=2)
    assert "no pending actions" in federation.run("member", "vote", "", home="a", code=2)


def test_a_member_rotates_its_signer_and_the_home_follows(federation: Federation) -> None:
    federation.found()
    before = federation.signer("b")
    rotated = federation.run("member", "rotate", home="b")
    after = federation.signer("b")
    assert before != after == rotated["signer"]
    assert federation.run("member", "list", home="b")["members"][1]["signer"] == after
    assert json.loads(federation.home("b").card.read_text())["signer"] == after
    assert sorted(p.name for p in federation.home("b").keys.glob("*signer*")) == ["signer.json"]


def test_a_rotation_that_was_cut_off_is_finished(federation: Federation) -> None:
    federation.found()
    keys = federation.home("b").keys
    old = (keys / "signer.json").read_bytes()
    federation.run("member", "rotate", home="b")
    (keys / "signer.json").rename(keys / "next-signer.json")
    (keys / "signer.json").write_bytes(old)
    finished = federation.run("member", "rotate", home="b")
    assert finished["transaction"] == ""
    assert federation.run("member", "list", home="b")["members"][1]["signer"] == federation.signer("b")
    assert federation.run("member", "list", home="b")["epoch"] == 2


def test_a_running_node_is_not_rotated_under_its_feet(federation: Federation) -> None:
    federation.found()
    with Journal(federation.home("b").journal):
        assert "stop that node first" in federation.run("member", "rotate", home="b", code=1)
    assert federation.run("member", "list", home="b")["epoch"] == 1


def test_a_damaged_journal_makes_way_for_a_fresh_one_with_a_fresh_key(federation: Federation) -> None:
    federation.found()
    home = federation.home("b")
    with Journal(home.journal, birth=home.journal_birth) as journal:
        journal.claim(SlotKind.VOTE, (1, 0, 0), bytes(32))
    home.journal.write_bytes(b"damage")
    old = federation.signer("b")
    federation.run("member", "rotate", home="b")
    assert (home.path / f"journal.sqlite.damaged-{old}").read_bytes() == b"damage"
    with Journal(home.journal, birth=home.journal_birth) as journal:
        assert journal.recall(SlotKind.VOTE, (1, 0, 0)) is None


def test_a_damaged_journal_stays_while_the_old_key_still_signs(federation: Federation) -> None:
    federation.found()
    home = federation.home("b")
    Journal(home.journal, birth=home.journal_birth).close()
    home.journal.write_bytes(b"damage")
    (home.keys / "next-signer.json").write_bytes((federation.home("a").keys / "signer.json").read_bytes())
    assert "SignerTaken" in federation.run("member", "rotate", home="b", code=1)
    with pytest.raises(JournalCorrupt):
        Journal(home.journal, birth=home.journal_birth)


def test_a_member_publishes_its_addresses(federation: Federation) -> None:
    federation.found()
    federation.run("member", "announce", "/ip4/127.0.0.1/tcp/4001", home="c")
    assert federation.run("member", "list", home="a")["members"][2]["addresses"] == [
        "/ip4/127.0.0.1/tcp/4001"
    ]
    assert "owns no seat" in federation.run("member", "announce", "/ip4/127.0.0.1/tcp/1", home="e", code=2)


def test_a_task_is_opened_shown_and_closed_by_a_quorum(federation: Federation) -> None:
    federation.found()
    file = federation.folder / "cancer.toml"
    file.write_text(TASK)
    action = federation.run("task", "open", file, home="a")["action"]
    assert federation.run("task", "list", home="b")["pending"][0]["kind"] == "open task"
    assert federation.run("task", "open", file, home="b")["action"] == action
    assert federation.run("task", "approve", action[:8], home="c")["executed"] is True
    listed = federation.run("task", "list", home="a")
    assert [(t["task"], t["status"], t["round"], t["rounds"]) for t in listed["tasks"]] == [(1, "open", 0, 2)]
    shown = federation.run("task", "show", 1, home="d")
    assert (shown["commit_window"], shown["reveal_window"], shown["results"]) == (60, 30, [])
    for name in "abc":
        closed = federation.run("task", "close", 1, home=name)
    assert closed["executed"] is True
    assert federation.run("task", "show", 1, home="d")["status"] == "closed"


def test_an_unknown_task_and_a_broken_task_file_are_named(federation: Federation) -> None:
    federation.found()
    assert "folkmoot task list" in federation.run("task", "show", 9, home="a", code=1)
    file = federation.folder / "broken.toml"
    file.write_text("name = ")
    assert "broken.toml" in federation.run("task", "open", file, home="a", code=2)
    assert "missing.toml" in federation.run(
        "task", "open", federation.folder / "missing.toml", home="a", code=2
    )


def test_outside_parts_that_do_not_answer_end_with_three(federation: Federation) -> None:
    federation.found()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}"
    config = federation.home("a").config
    config.write_text(config.read_text().replace(federation.rpc, dead))
    assert dead in federation.run("member", "list", home="a", code=3)


def test_a_chain_without_our_contracts_ends_with_three(federation: Federation) -> None:
    federation.found()
    with EmbeddedChain(None) as empty:
        config = federation.home("a").config
        config.write_text(config.read_text().replace(federation.rpc, empty.url))
        federation.run("task", "list", home="a", code=3)


def test_another_chain_than_configured_and_a_missing_deployment_are_wrong_usage(
    federation: Federation,
) -> None:
    assert "folkmoot chain deploy" in federation.run("member", "list", home="a", code=2)
    federation.found()
    config = federation.home("a").config
    config.write_text(config.read_text().replace("# chain_id = 31337", "chain_id = 5"))
    assert "correct chain.chain_id" in federation.run("member", "list", home="a", code=2)
    (federation.folder / "deployment.toml").write_text("chain_id = 1\n")
    assert "deployment" in federation.run("member", "list", home="b", code=2)


def test_a_wrong_passphrase_decides_nothing(federation: Federation, tmp_path: Path) -> None:
    federation.found()
    wrong = tmp_path / "wrong"
    wrong.write_text("battery staple")
    error = federation.run("member", "remove", 3, "--passphrase-file", wrong, home="a", code=2)
    assert "passphrase does not open" in error
    assert "battery" not in error


def serve(folder: Path, port: int, *options: str) -> subprocess.Popen[str]:
    arguments = ["chain", "--path", str(folder), "--port", str(port), "--json", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "folkmoot.node.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop(process: subprocess.Popen[str], number: int) -> tuple[int, str]:
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    return process.returncode, err


@pytest.mark.parametrize(
    "options",
    [pytest.param((), id="embedded"), pytest.param(("--anvil",), id="anvil", marks=pytest.mark.solidity)],
)
def test_the_served_chain_stops_when_asked_and_keeps_its_state(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    require_anvil: Callable[[], None],
    options: tuple[str, ...],
) -> None:
    if options:
        require_anvil()
    monkeypatch.setenv("FOLKMOOT_PASSPHRASE_FILE", str(tmp_path / "passphrase"))
    process = serve(tmp_path / "chain", 0, *options)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        federation = Federation(tmp_path, ready["rpc"], capfd)
        federation.found()
        assert stop(process, signal.SIGTERM) == (0, "Chain stopped.\n")
        process = serve(tmp_path / "chain", int(ready["rpc"].rpartition(":")[2]), *options)
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == ready
        assert len(federation.run("member", "list", home="a")["members"]) == 4
        assert stop(process, signal.SIGINT)[0] == 0
    finally:
        process.kill()
        process.wait(timeout=10)


@pytest.fixture
def require_anvil() -> Callable[[], None]:
    def require() -> None:
        from folkmoot.contracts.anvil import ChainToolMissing, find_anvil

        try:
            find_anvil()
        except ChainToolMissing as error:
            pytest.skip(str(error))

    return require


def test_a_busy_port_is_wrong_usage(federation: Federation) -> None:
    port = federation.rpc.rpartition(":")[2]
    error = federation.run("chain", "--path", federation.folder / "chain", "--port", port, code=2)
    assert port in error
