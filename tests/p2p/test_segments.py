"""No leaf is forgotten, whoever takes, drops and overtakes whose run."""

from collections.abc import Iterable
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from folkmoot.p2p.segments import Segments, runs
from folkmoot.p2p.types import PeerId

PEERS = [PeerId(bytes([k])) for k in range(4)]
STEPS = ["take", "overtake", "fail", "half", "whole"]


@given(leaves=st.sets(st.integers(0, 100)))
def test_runs_hold_exactly_the_leaves_and_have_gaps_between_them(leaves: set[int]) -> None:
    found = list(runs(leaves))
    assert [leaf for run in found for leaf in run] == sorted(leaves)
    assert all(left.stop < right.start for left, right in pairwise(found))


@given(
    leaves=st.sets(st.integers(0, 300), min_size=1),
    steps=st.lists(
        st.tuples(st.sampled_from(PEERS), st.sampled_from(["take", "overtake", "fail", "half", "whole"]))
    ),
)
def test_after_any_history_one_honest_provider_gets_everything(
    leaves: set[int], steps: Iterable[tuple[PeerId, str]]
) -> None:
    missing = set(leaves)
    segments = Segments(missing, 4, 64)
    held: dict[PeerId, range] = {}
    for peer, step in steps:
        if step in ("take", "overtake"):
            if peer not in held:
                run = segments.take(peer, 2) if step == "take" else segments.overtake(peer)
                if run is not None:
                    held[peer] = run
        elif peer in held:
            run = held.pop(peer)
            part = {"fail": 0, "half": len(run) // 2, "whole": len(run)}[step]
            missing -= set(run[:part])
            segments.finish(peer)
    for peer in list(held):
        segments.finish(peer)
    fetched = 0
    while (run := segments.take(PEERS[0], 1)) is not None:
        assert len(run) <= 64
        missing -= set(run)
        fetched += 1
        segments.finish(PEERS[0])
    assert missing == set()
    assert segments.overtake(PEERS[0]) is None
    assert (segments.waiting, segments.busy) == (0, 0)


def test_a_stalled_provider_is_overtaken_from_the_end() -> None:
    missing = set(range(64))
    segments = Segments(missing, 4, 64)
    assert segments.take(PEERS[0], 1) == range(0, 32)
    assert segments.take(PEERS[1], 1) == range(32, 64)
    missing -= set(range(8)) | set(range(32, 64))
    segments.finish(PEERS[1])
    assert segments.take(PEERS[1], 1) is None
    assert segments.overtake(PEERS[1]) == range(20, 32)
