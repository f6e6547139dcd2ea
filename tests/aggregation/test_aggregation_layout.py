"""A layout turns named arrays into one vector and back, and refuses everything that does not fit by name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.aggregation import Layout, LayoutInvalid, LayoutMismatch, TensorSpec

LAYOUT = Layout((TensorSpec("w", (2, 3)), TensorSpec("b", (3,)), TensorSpec("scale", ())))

tensors = st.builds(
    TensorSpec,
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    st.lists(st.integers(1, 4), max_size=3).map(tuple),
)
layouts = st.lists(tensors, min_size=1, max_size=6, unique_by=lambda tensor: tensor.name).map(
    lambda listed: Layout(tuple(listed))
)


def arrays() -> dict[str, np.ndarray]:
    flat = np.arange(10, dtype=np.float32)
    return {"w": flat[:6].reshape(2, 3), "b": flat[6:9], "scale": flat[9:].reshape(())}


def test_tensors_stand_in_the_layouts_order_whatever_the_mappings_order():
    given_last_first = dict(reversed(arrays().items()))
    assert LAYOUT.flatten(given_last_first).tolist() == list(range(10))
    assert LAYOUT.flatten(list(arrays().values())).tolist() == list(range(10))


def test_unflatten_returns_copies():
    flat = np.zeros(10, np.float32)
    LAYOUT.unflatten(flat)["w"][:] = 1
    assert not flat.any()


@given(layouts, st.integers(0, 2**32 - 1))
def test_flatten_and_document_are_undone(layout, seed):
    flat = np.random.default_rng(seed).normal(size=layout.size).astype(np.float32)
    tensors = layout.unflatten(flat)
    assert layout.flatten(tensors).tobytes() == flat.tobytes()
    assert Layout.of(tensors) == layout
    assert Layout.from_document(layout.to_document()) == layout
    assert Layout.from_document(layout.to_document()).digest() == layout.digest()


def test_layouts_that_differ_in_name_shape_or_order_have_different_digests():
    variants = [
        LAYOUT,
        Layout(LAYOUT.tensors[::-1]),
        Layout((TensorSpec("v", (2, 3)), *LAYOUT.tensors[1:])),
        Layout((TensorSpec("w", (3, 2)), *LAYOUT.tensors[1:])),
        Layout(LAYOUT.tensors[:2]),
    ]
    assert len({layout.digest() for layout in variants}) == len(variants)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"w": None}, "'w' is missing"),
        ({"bias": np.zeros(3, np.float32)}, "'bias' is not in the layout"),
        ({"b": np.zeros(4, np.float32)}, "'b': expected a float32 array (3,), found float32 (4,)"),
        ({"b": np.zeros(3, np.float64)}, "'b': expected a float32 array (3,), found float64 (3,)"),
        ({"b": [1.0, 2.0, 3.0]}, "'b': expected a float32 array (3,), found list"),
    ],
)
def test_an_array_that_does_not_fit_is_refused_by_name(change, named):
    changed = {name: array for name, array in {**arrays(), **change}.items() if array is not None}
    with pytest.raises(LayoutMismatch) as refusal:
        LAYOUT.flatten(changed)
    assert named in str(refusal.value)


def test_a_sequence_of_another_length_and_a_wrong_vector_are_refused():
    with pytest.raises(LayoutMismatch, match="expected 3 arrays, found 2"):
        LAYOUT.flatten(list(arrays().values())[:2])
    with pytest.raises(LayoutMismatch, match="float64"):
        LAYOUT.unflatten(np.zeros(10))


@pytest.mark.parametrize(
    "make",
    [
        lambda: TensorSpec("", (1,)),
        lambda: TensorSpec("é" * 129, (1,)),
        lambda: TensorSpec("\ud800", (1,)),
        lambda: TensorSpec("w", (0,)),
        lambda: TensorSpec("w", (True,)),
        lambda: TensorSpec("w", (2**31 + 1,)),
        lambda: TensorSpec("w", (1,) * 17),
        lambda: TensorSpec("w", (1,), "float64"),
        lambda: Layout(()),
        lambda: Layout((TensorSpec("w", (1,)), TensorSpec("w", (2,)))),
        lambda: Layout(tuple(TensorSpec(str(i), (1,)) for i in range(4097))),
        lambda: Layout((TensorSpec("w", (2**31,)), TensorSpec("b", (1,)))),
        lambda: Layout.from_document({"w": [1]}),
        lambda: Layout.from_document([["w", "float32"]]),
        lambda: Layout.from_document([["w", "float32", (1,)]]),
        lambda: Layout.from_document([["w", "float32", [1.0]]]),
        lambda: Layout.from_document([[1, "float32", [1]]]),
        lambda: Layout.from_document([["w", "float32", [-1]]]),
    ],
)
def test_a_layout_out_of_bounds_is_refused(make):
    with pytest.raises(LayoutInvalid):
        make()


def test_the_largest_layout_is_accepted():
    assert Layout((TensorSpec("w", (2**16, 2**15)),)).size == 2**31


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("float32"),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=12,
)


@given(documents)
def test_any_document_is_a_layout_or_refused(document):
    try:
        layout = Layout.from_document(document)
    except LayoutInvalid:
        return
    assert layout.to_document() == document
