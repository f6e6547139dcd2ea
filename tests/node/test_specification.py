"""The specification of a task: one document, one digest, and no value that a member could stumble over."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from folkmoot.aggregation import Lattice, Layout, RuleSpec, ScoreSpec
from folkmoot.aggregation.errors import LatticeInvalid
from folkmoot.node.protocol import canonical
from folkmoot.node.protocol.canonical import MalformedError
from folkmoot.node.specification import Specification, decode_specification, document_cid
from folkmoot.p2p.cid import digest_of
from folkmoot.p2p.unixfs import cid_of_bytes

LAYOUT = Layout.of({"w": np.zeros((3, 2), np.float32), "b": np.zeros(2, np.float32)})
GENESIS = cid_of_bytes(b"genesis")
EXAMPLE = Specification(
    "digits",
    LAYOUT,
    GENESIS,
    RuleSpec("multi-krum", 1, (("m", 3),)),
    Lattice(16, (-13, -14)),
    5,
    600,
    120,
    60,
    ScoreSpec((("similarity", 2),)),
    (("lr", 0.5), ("epochs", 2), ("shuffle", True), ("optimizer", "sgd")),
)

windows = st.integers(1, 2**32 - 1)
fits = st.dictionaries(
    st.text(max_size=8),
    st.one_of(
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=8),
    ),
    max_size=5,
)


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=20), windows, windows, windows, windows, st.integers(-110, 100), fits)
def test_a_specification_survives(
    name: str, rounds: int, commit: int, reveal: int, attempt: int, exponent: int, fit: dict[str, object]
) -> None:
    specification = replace(
        EXAMPLE,
        name=name,
        rounds=rounds,
        commit_window=commit,
        reveal_window=reveal,
        attempt_window=attempt,
        lattice=Lattice(8, (exponent, -exponent if exponent <= 100 else 0))
        if exponent > -100
        else EXAMPLE.lattice,
        fit=tuple(fit.items()),
    )
    assert decode_specification(specification.encode()) == specification


def test_the_order_in_which_the_fit_options_were_written_does_not_matter() -> None:
    turned = replace(EXAMPLE, fit=EXAMPLE.fit[::-1])
    assert turned == EXAMPLE
    assert turned.digest == EXAMPLE.digest


def test_the_chain_knows_a_specification_by_its_digest() -> None:
    terms = EXAMPLE.terms
    assert terms.specification == canonical.digest(EXAMPLE.encode()) == digest_of(EXAMPLE.cid)
    assert terms.genesis == digest_of(GENESIS)
    assert (terms.rounds, terms.commit_window, terms.reveal_window) == (5, 600, 120)
    assert document_cid(terms.specification) == EXAMPLE.cid


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"genesis": cid_of_bytes(b"other")},
        {"rule": RuleSpec("multi-krum", 1, (("m", 2),))},
        {"lattice": Lattice(16, (-13, -13))},
        {"rounds": 6},
        {"attempt_window": 61},
        {"scores": ScoreSpec()},
        {"fit": ()},
    ],
)
def test_everything_that_members_must_agree_on_is_in_the_digest(change: dict[str, object]) -> None:
    assert replace(EXAMPLE, **change).digest != EXAMPLE.digest  # type: ignore[arg-type]


def test_the_rules_digest_does_not_depend_on_anything_else() -> None:
    assert replace(EXAMPLE, name="other", rounds=9).rule_digest == EXAMPLE.rule_digest


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_malformed(noise: bytes) -> None:
    with pytest.raises(MalformedError):
        decode_specification(noise)


values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False), st.binary(max_size=20), st.text(max_size=9),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(canonical.decode(EXAMPLE.encode()))), values)
def test_any_value_in_any_field_is_read_or_malformed(field: str, value: object) -> None:
    document = canonical.decode(EXAMPLE.encode())
    document[field] = value
    content = canonical.encode(document)
    with contextlib.suppress(MalformedError):
        assert decode_specification(content).encode() == content


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("format", "folkmoot/specification/2", "format"),
        ("rounds", 0, "rounds"),
        ("windows", [0, 1, 1], "commit window"),
        ("windows", [1, 1], "windows"),
        ("lattice", [16, [-13]], "tensors"),
        ("lattice", [12, [-13, -13]], "bits"),
        ("lattice", [16, [-13, 101]], "exponent"),
        ("lattice", [16, ["-13", "-13"]], "exponent"),
        ("rule", {"name": "magic", "f": 0, "params": {}, "pre": []}, "magic"),
        ("rule", {"name": "krum", "f": -1, "params": {}, "pre": []}, "f is -1"),
        ("scores", {"charm": 1}, "charm"),
        ("fit", {"lr": [1]}, "fit.lr"),
        ("fit", {str(i): i for i in range(65)}, "at most 64"),
        ("genesis", "bafy", "link"),
        ("layout", [["w", [0]]], "layout|dimension|tensor"),
    ],
)
def test_a_bad_field_is_named(field: str, value: object, why: str) -> None:
    document = canonical.decode(EXAMPLE.encode())
    document[field] = value
    with pytest.raises(MalformedError, match=why):
        decode_specification(canonical.encode(document))


def test_a_specification_that_contradicts_itself_cannot_be_made() -> None:
    with pytest.raises(LatticeInvalid):
        replace(EXAMPLE, lattice=Lattice(16, (-13,)))
    with pytest.raises(MalformedError, match="reveal window"):
        replace(EXAMPLE, reveal_window=0)
    with pytest.raises(MalformedError, match="fit: a name occurs twice"):
        replace(EXAMPLE, fit=(("lr", 1), ("lr", 2)))
    with pytest.raises(MalformedError, match=r"fit\.epochs"):
        replace(EXAMPLE, fit=(("epochs", 2**63),))
    with pytest.raises(MalformedError, match=r"fit\.lr"):
        replace(EXAMPLE, fit=(("lr", float("nan")),))
