"""Nothing is signed twice: not after a crash, not from a second process, not from a damaged file."""

from __future__ import annotations

import fcntl
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from folkmoot.node.errors import ExitCode, HomeBusy, HomeMissing, exit_code_of
from folkmoot.node.home import FileLock, Home
from folkmoot.node.journal import (
    AlreadySigned,
    Journal,
    JournalCorrupt,
    JournalUnwritable,
    Signed,
    SlotKind,
    lock_path,
    open_journal,
)

ONE, TWO = bytes([1]) * 32, bytes([2]) * 32

CLAIM_THEN_DIE = """
import os, signal, sys
from pathlib import Path
from folkmoot.node.journal import Journal, SlotKind
journal = Journal(Path(sys.argv[1]))
for attempt in range(1000):
    journal.claim(SlotKind.RESULT, (1, 0, attempt), attempt.to_bytes(32, "big"), b"payload %d" % attempt)
    print(attempt, flush=True)
    if attempt == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
"""

HOLD = """
import sys
from pathlib import Path
from folkmoot.node.journal import Journal
with Journal(Path(sys.argv[1])):
    print("open", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def fill(path: Path, entries: int) -> None:
    with Journal(path) as journal:
        for number in range(entries):
            journal.claim(SlotKind.VOTE, (1, number, 0), ONE, b"vote %d" % number)


def test_a_slot_is_signed_once(path: Path) -> None:
    with Journal(path) as journal:
        journal.claim(SlotKind.COMMITMENT, (1, 2), ONE)
        journal.claim(SlotKind.COMMITMENT, (1, 2), ONE)
        with pytest.raises(AlreadySigned, match="commitment 1/2 was signed as 0101") as caught:
            journal.claim(SlotKind.COMMITMENT, (1, 2), TWO)
    assert (caught.value.kept, caught.value.refused, caught.value.slot) == (ONE, TWO, (1, 2))


def test_other_rounds_kinds_and_attempts_are_other_slots(path: Path) -> None:
    with Journal(path) as journal:
        journal.claim(SlotKind.COMMITMENT, (1, 2), ONE)
        journal.claim(SlotKind.COMMITMENT, (1, 3), TWO)
        journal.claim(SlotKind.REVEAL, (1, 2), TWO)
        journal.claim(SlotKind.RESULT, (1, 2, 0), ONE)
        journal.claim(SlotKind.RESULT, (1, 2, 1), TWO)


def test_the_same_round_on_another_chain_is_another_slot(path: Path) -> None:
    for domain, digest in ((b"a" * 32, ONE), (b"b" * 32, TWO)):
        with Journal(path, domain) as journal:
            journal.claim(SlotKind.COMMITMENT, (1, 0), digest)
    with Journal(path, b"a" * 32) as journal, pytest.raises(AlreadySigned):
        journal.claim(SlotKind.COMMITMENT, (1, 0), TWO)


def test_what_was_signed_can_be_sent_again_after_a_restart(path: Path) -> None:
    with Journal(path) as journal:
        assert journal.recall(SlotKind.COMMITMENT, (1, 2)) is None
        journal.claim(SlotKind.COMMITMENT, (1, 2), ONE, b"the message")
        journal.claim(SlotKind.COMMITMENT, (1, 2), ONE, b"another encoding")
    with Journal(path) as journal:
        assert journal.recall(SlotKind.COMMITMENT, (1, 2)) == Signed(ONE, b"the message")


@pytest.mark.parametrize("last", [0, 7])
def test_a_claim_outlives_sigkill(path: Path, last: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CLAIM_THEN_DIE, str(path), str(last)],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert ended.stdout.split()[-1] == b"%d" % last
    with Journal(path) as journal:
        for attempt in range(last + 1):
            kept = journal.recall(SlotKind.RESULT, (1, 0, attempt))
            assert kept == Signed(attempt.to_bytes(32, "big"), b"payload %d" % attempt)
        with pytest.raises(AlreadySigned):
            journal.claim(SlotKind.RESULT, (1, 0, last), TWO)


def test_every_claim_that_returned_outlives_sigkill_at_any_moment(path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIM_THEN_DIE, str(path), "-1"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    seen = [process.stdout.readline() for _ in range(20)]
    process.kill()
    seen += process.stdout.readlines()
    process.wait(timeout=10)
    process.stdout.close()
    with Journal(path) as journal:
        for attempt in map(int, filter(str.strip, seen)):
            assert journal.recall(SlotKind.RESULT, (1, 0, attempt)) is not None


def test_a_second_process_is_kept_out_and_told_who_is_in(path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(HomeBusy, match=f"process {process.pid}"):
            Journal(path)
        assert FileLock.holder(lock_path(path)) == process.pid
    finally:
        process.communicate(timeout=10)
    Journal(path).close()
    assert FileLock.holder(lock_path(path)) is None


def test_looking_who_is_in_keeps_nobody_out(path: Path) -> None:
    with lock_path(path).open("wb") as glance:
        fcntl.flock(glance, fcntl.LOCK_SH)
        over = threading.Timer(0.1, fcntl.flock, (glance, fcntl.LOCK_UN))
        over.start()
        try:
            FileLock(lock_path(path)).release()
        finally:
            over.join(timeout=10)


def test_the_main_file_alone_holds_every_claim(path: Path, tmp_path: Path) -> None:
    with Journal(path) as journal:
        journal.claim(SlotKind.VOTE, (1, 2, 0), ONE, b"vote")
        (tmp_path / "copy").mkdir()
        copy = tmp_path / "copy" / path.name
        shutil.copy(path, copy)
    with Journal(copy) as journal:
        assert journal.recall(SlotKind.VOTE, (1, 2, 0)) == Signed(ONE, b"vote")


def test_a_lost_journal_is_not_taken_for_a_new_one(path: Path) -> None:
    fill(path, 1)
    path.unlink()
    with pytest.raises(JournalCorrupt, match=r"gone although .* Restore the latest copy") as caught:
        Journal(path)
    assert exit_code_of(caught.value) is ExitCode.FAILED
    assert not path.exists()


def test_a_home_remembers_its_journal_beside_the_keys(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.keys.mkdir()
    open_journal(home).close()
    for file in tmp_path.glob("journal*"):
        file.unlink()
    with pytest.raises(JournalCorrupt):
        open_journal(home)


@pytest.mark.parametrize("content", [b"", b"not a database at all, but long enough to look like one" * 40])
def test_a_replaced_file_is_refused(path: Path, content: bytes) -> None:
    fill(path, 1)
    path.write_bytes(content)
    with pytest.raises(JournalCorrupt):
        Journal(path)


def test_the_journal_of_another_home_is_refused(path: Path, tmp_path: Path) -> None:
    fill(path, 1)
    fill(tmp_path / "other.sqlite", 1)
    shutil.copy(tmp_path / "other.sqlite", path)
    with pytest.raises(JournalCorrupt, match="another home"):
        Journal(path)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM signed WHERE number = 2",
        "UPDATE signed SET digest = zeroblob(32) WHERE number = 3",
        "UPDATE signed SET payload = x'00' WHERE number = 1",
        "UPDATE signed SET slot = '9/9/9' WHERE number = 3",
        "UPDATE signed SET digest = 7 WHERE number = 3",
        "UPDATE signed SET slot = CAST(x'ff' AS TEXT) WHERE number = 3",
        "DELETE FROM journal",
        "DROP TABLE signed",
    ],
)
def test_a_changed_or_missing_entry_is_noticed(path: Path, statement: str) -> None:
    fill(path, 3)
    database = sqlite3.connect(path)
    database.execute(statement)
    database.commit()
    database.close()
    with pytest.raises(JournalCorrupt):
        Journal(path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_changed_byte_never_frees_a_slot(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("home") / "journal.sqlite"
    fill(path, 3)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        journal = Journal(path)
    except (JournalCorrupt, JournalUnwritable):
        return
    with journal:
        for number in range(3):
            with pytest.raises((AlreadySigned, JournalCorrupt, JournalUnwritable)):
                journal.claim(SlotKind.VOTE, (1, number, 0), TWO)


def test_a_journal_that_was_just_being_born_is_finished(path: Path) -> None:
    Journal(path).close()
    path.with_name(path.name + ".born").unlink()
    fill(path, 1)
    with Journal(path) as journal:
        assert journal.recall(SlotKind.VOTE, (1, 0, 0)) is not None


def test_a_full_disk_forbids_the_signature_and_the_slot_stays_free(path: Path) -> None:
    with Journal(path) as journal:
        journal.claim(SlotKind.VOTE, (1, 0, 0), ONE)
        pages = journal._database.execute("PRAGMA page_count").fetchone()[0]
        journal._database.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(JournalUnwritable, match="nothing is signed; free disk space"):
            journal.claim(SlotKind.VOTE, (1, 1, 0), ONE, bytes(100_000))
        journal._database.execute("PRAGMA max_page_count = 1000000")
        journal.claim(SlotKind.VOTE, (1, 1, 0), TWO, bytes(100_000))
    with Journal(path) as journal:
        assert journal.recall(SlotKind.VOTE, (1, 1, 0)) == Signed(TWO, bytes(100_000))


def test_of_many_threads_one_digest_wins(path: Path) -> None:
    won: list[int] = []
    with Journal(path) as journal:

        def sign(number: int) -> None:
            try:
                journal.claim(SlotKind.RESULT, (1, 0, 0), bytes([number]) * 32)
                won.append(number)
            except AlreadySigned:
                pass

        threads = [threading.Thread(target=sign, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=10)
        kept = journal.recall(SlotKind.RESULT, (1, 0, 0))
    assert kept is not None
    assert [bytes([n]) * 32 for n in won] == [kept.digest]


@pytest.mark.parametrize(("kind", "slot"), [("commitment", (1, 2, 3)), ("vote", (1, 2)), ("reveal", (1, -1))])
def test_a_malformed_slot_is_refused(path: Path, kind: str, slot: tuple[int, ...]) -> None:
    with Journal(path) as journal, pytest.raises(ValueError, match="slot has"):
        journal.claim(SlotKind(kind), slot, ONE)


def test_a_home_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(HomeMissing, match="nowhere is no node's home"):
        Journal(tmp_path / "nowhere" / "journal.sqlite")


def test_the_database_syncs_every_commit(path: Path) -> None:
    with Journal(path) as journal:
        database = journal._database
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("PRAGMA synchronous").fetchone() == (2,)
