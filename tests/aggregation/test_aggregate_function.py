"""The one call for those who only want the rules: what goes in, what comes out, and how it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from folkmoot.aggregation.errors import (
    BackendUnavailable,
    BoundExceeded,
    LatticeInvalid,
    LayoutInvalid,
    LayoutMismatch,
    NotFinite,
    ReferenceMissing,
    RuleInvalid,
    TooFewUpdates,
    WeightsInvalid,
    WrongMagic,
)
from folkmoot.aggregation.interface import aggregate, processors
from folkmoot.aggregation.lattice import Lattice, quantize
from folkmoot.aggregation.layout import Layout, TensorSpec
from folkmoot.aggregation.update_codec import encode

HONEST = [np.float32([1, 2]), np.float32([1.5, 2]), np.float32([1, 2.5]), np.float32([1.5, 2.5])]
LIAR = np.float32([1e9, -1e9])
LAYOUT = Layout((TensorSpec("w", (2, 2)), TensorSpec("b", ())))
LATTICE = Lattice(16, (-10, -4))


def updates_from(seed: int, n: int = 7, d: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (n, d)).astype(np.float32)


def encoded(seed: int) -> bytes:
    delta = np.random.default_rng(seed).normal(0, 3, LAYOUT.size).astype(np.float32)
    return encode(delta, LAYOUT, LATTICE)


class TestResults:
    def test_the_median_of_four_and_a_liar_is_among_the_four(self) -> None:
        result = aggregate([*HONEST, LIAR], "median", f=2)
        assert result.dtype == np.float32
        assert result.tolist() == [1.5, 2.0]

    def test_the_trimmed_mean_without_liars_is_the_rule_left_out(self) -> None:
        assert aggregate(HONEST).tolist() == aggregate(HONEST, "mean").tolist() == [1.25, 2.25]

    @settings(deadline=None, max_examples=60)
    @given(
        seed=st.integers(0, 2**32 - 1),
        n=st.integers(1, 12),
        d=st.integers(1, 40),
        scale=st.integers(-80, 80),
        bits=st.sampled_from([8, 16]),
    )
    def test_the_mean_is_the_plain_mean_within_one_step_of_the_lattice(
        self, seed: int, n: int, d: int, scale: int, bits: int
    ) -> None:
        updates = np.ldexp(updates_from(seed, n, d), scale).astype(np.float32)
        wanted = updates.astype(np.float64).mean(axis=0)
        step = float(np.abs(updates).max()) * 2.0 ** (3 - bits)
        assert np.abs(aggregate(updates, "mean", bits=bits, threads=1) - wanted).max() <= step

    @settings(deadline=None, max_examples=60)
    @given(seed=st.integers(0, 2**32 - 1), f=st.integers(0, 2), scale=st.integers(-80, 80))
    def test_the_trimmed_mean_is_the_plain_one_within_one_step_of_the_honest_scale(
        self, seed: int, f: int, scale: int
    ) -> None:
        updates = np.ldexp(updates_from(seed), scale).astype(np.float32)
        updates[:f] *= 1e5
        wanted = np.sort(updates.astype(np.float64), axis=0)[f : 7 - f].mean(axis=0)
        step = float(np.sort(np.abs(updates).max(axis=1))[6 - f]) * 2.0**-12
        assert np.abs(aggregate(updates, f=f, threads=1) - wanted).max() <= step

    def test_a_liar_cannot_zoom_the_grid_away(self) -> None:
        honest = updates_from(5, n=6) * np.float32(1e-6)
        with_liar = aggregate([*honest, np.full(50, 1e30, np.float32)], "median", f=1)
        assert np.abs(with_liar - np.sort(honest, axis=0)[3]).max() < 1e-9

    def test_with_no_liars_to_survive_nothing_saturates(self) -> None:
        updates = [np.float32([1.0]), np.float32([1.0]), np.float32([3e4])]
        assert aggregate(updates, "mean").tolist() == [pytest.approx(30002 / 3, rel=1e-4)]

    def test_denormals_are_taken_for_what_they_are_or_nothing(self) -> None:
        tiny = [np.full(3, 1e-42, np.float32), np.full(3, 1e-41, np.float32), np.zeros(3, np.float32)]
        assert np.abs(aggregate(tiny, "mean")).max() <= 1e-41

    def test_zeros_stay_zeros(self) -> None:
        assert aggregate([np.zeros(4, np.float32)] * 3, "krum").tolist() == [0.0] * 4

    def test_one_update_of_one_value_is_its_own_mean(self) -> None:
        assert aggregate([np.float32([0.75])], "mean").tolist() == [0.75]

    def test_preaggregators_come_before_the_rule(self) -> None:
        updates = [np.float32([value]) for value in (1, 1, 1, 1.5)]
        assert aggregate(updates, "mean", f=1).tolist() == [1.125]
        # The last one becomes (1.5 + 1 + 1) / 3, the others stay.
        assert aggregate(updates, "mean", f=1, pre=["nnm"]).tolist() == [pytest.approx(25 / 24, rel=1e-3)]

    def test_the_seed_decides_the_buckets(self) -> None:
        updates = updates_from(1, n=9)
        once = [aggregate(updates, "median", f=0, pre=["bucketing:s=2"], seed=seed) for seed in (1, 1, 2)]
        assert once[0].tobytes() == once[1].tobytes() != once[2].tobytes()

    def test_a_claim_counts_no_more_than_the_cap(self) -> None:
        updates = [np.float32([0.0]), np.float32([1.0])]
        capped = aggregate(updates, "weighted-mean", params={"cap": 3}, weights=[1, 1000])
        assert capped.tolist() == [0.75]

    def test_centered_clipping_starts_from_the_reference(self) -> None:
        params = {"tau": 1.5, "history": 1}
        near = aggregate(HONEST, "centered-clipping", params=params, reference=np.float32([1, 2]))
        far = aggregate(HONEST, "centered-clipping", params=params, reference=np.float32([1000, 2]))
        assert near.tolist() == pytest.approx([1.25, 2.25], abs=1e-3)
        assert far.tolist() == pytest.approx([998.5, 2.0], abs=0.2)


class TestKinds:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.dtype(">f4")])
    def test_arrays_of_every_float_type_give_float32_of_their_shape(self, dtype: np.dtype) -> None:
        updates = [np.arange(6, dtype=dtype).reshape(2, 3) + i for i in range(3)]
        result = aggregate(updates, "median", f=1)
        assert result.dtype == np.float32
        assert result.tolist() == [[1, 2, 3], [4, 5, 6]]

    def test_the_rows_of_a_matrix_are_updates(self) -> None:
        matrix = updates_from(3)
        assert aggregate(matrix, f=2).tobytes() == aggregate(list(matrix), f=2).tobytes()

    @pytest.mark.parametrize("view", [lambda a: np.asfortranarray(a), lambda a: a[:, ::-1][:, ::-1]])
    def test_how_an_array_lies_in_memory_does_not_matter(self, view) -> None:
        stack = updates_from(3).reshape(7, 5, 10)
        plain = aggregate(list(stack), f=2)
        assert aggregate([view(update) for update in stack], f=2).tobytes() == plain.tobytes()

    def test_mappings_give_a_mapping_in_the_order_of_the_first(self) -> None:
        first = {"w": np.float32([[1, 2]]), "b": np.array(3, np.float32)}
        second = {"b": np.array(5, np.float32), "w": np.float32([[3, 4]])}
        result = aggregate([first, second], "mean")
        assert list(result) == ["w", "b"]
        assert result["w"].tolist() == [[2, 3]]
        assert result["b"].tolist() == 4
        assert result["b"].shape == ()

    def test_each_tensor_has_a_scale_of_its_own(self) -> None:
        updates = [{"large": np.float32([1e6 * i]), "small": np.float32([1e-6 * i])} for i in (1, 2, 3)]
        result = aggregate(updates, "median", f=1)
        assert result["small"].tolist() == [pytest.approx(2e-6, rel=1e-3)]
        assert result["large"].tolist() == [pytest.approx(2e6, rel=1e-3)]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_tensors_of_every_float_type_give_a_float32_tensor(self, dtype: torch.dtype) -> None:
        updates = [torch.arange(6).reshape(2, 3).to(dtype) + i for i in range(3)]
        result = aggregate(updates, "median", f=1)
        assert result.dtype == torch.float32
        assert result.tolist() == [[1, 2, 3], [4, 5, 6]]

    def test_tensors_and_arrays_give_the_same_bytes(self) -> None:
        matrix = updates_from(4)
        result = aggregate(torch.from_numpy(matrix).requires_grad_(), "krum", f=2)
        assert result.numpy().tobytes() == aggregate(matrix, "krum", f=2).tobytes()

    def test_state_dicts_give_a_state_dict(self) -> None:
        updates = [torch.nn.Linear(3, 2).state_dict() for _ in range(3)]
        result = aggregate(updates, "median", f=1)
        torch.nn.Linear(3, 2).load_state_dict(result)

    def test_encoded_updates_give_the_flat_result_from_bytes_and_files(self, tmp_path: Path) -> None:
        data = [encoded(seed) for seed in range(5)]
        files = []
        for index, content in enumerate(data):
            files.append(tmp_path / f"{index}")
            files[-1].write_bytes(content)
        views = [bytearray(data[0]), memoryview(data[1]), *files[2:]]
        results = [aggregate(u, f=1, layout=LAYOUT, lattice=LATTICE).tobytes() for u in (data, files, views)]
        assert results[0] == results[1] == results[2]
        assert len(results[0]) == 4 * LAYOUT.size

    def test_floats_are_put_on_the_lattice_as_members_do(self) -> None:
        deltas = updates_from(9, n=3, d=LAYOUT.size)
        named = [LAYOUT.unflatten(delta) for delta in deltas]
        peaks = [[np.abs(d[:4]).max(), np.abs(d[4:]).max()] for d in deltas]
        exponents = tuple(int(np.frexp(max(column))[1]) - 15 for column in zip(*peaks, strict=True))
        by_hand = Lattice(16, exponents)
        sources = [encode(delta, LAYOUT, by_hand) for delta in deltas]
        wanted = aggregate(sources, "median", f=0, layout=LAYOUT, lattice=by_hand)
        found = aggregate(named, "median", f=0)
        assert np.concatenate([v.reshape(-1) for v in found.values()]).tobytes() == wanted.tobytes()
        assert quantize(deltas[0], LAYOUT, by_hand).any()

    def test_pytorch_is_not_imported_for_arrays(self) -> None:
        script = (
            "import sys, numpy as np\nfrom folkmoot.aggregation.interface import aggregate\n"
            "aggregate(np.ones((3, 4), np.float32), 'median', f=1, backend='numpy')\n"
            "assert 'torch' not in sys.modules"
        )
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=False)
        assert ended.returncode == 0, ended.stderr.decode()


class TestSameBytes:
    @pytest.mark.parametrize("rule", ["mean", "trimmed-mean", "phocas", "krum", "geometric-median", "bulyan"])
    def test_threads_and_backends_do_not_change_the_result(self, rule: str) -> None:
        updates = updates_from(2, n=7, d=3000)
        found = {
            aggregate(updates, rule, f=1, backend=backend, threads=threads).tobytes()
            for backend in ("auto", "numpy", "torch")
            for threads in (1, 3)
        }
        assert len(found) == 1

    def test_the_input_is_left_as_it_was(self) -> None:
        updates = updates_from(2)
        before = updates.copy()
        aggregate(updates, "krum", f=2)
        assert np.array_equal(updates, before)

    def test_there_are_processors(self) -> None:
        assert 1 <= processors() <= 256


class TestRefusals:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_an_update_that_is_not_finite_is_named_with_tensor_and_value(self, value: float) -> None:
        updates = [{"w": np.ones(300_000, np.float32), "b": np.ones(2, np.float32)} for _ in range(4)]
        updates[2]["w"][200_001] = value
        with pytest.raises(NotFinite, match=r"update 2: tensor 'w': value 200001 is (nan|-?inf)"):
            aggregate(updates, "median", f=1)

    def test_of_several_bad_updates_the_first_is_named(self) -> None:
        updates = updates_from(0)
        updates[[2, 5], 0] = np.nan
        with pytest.raises(NotFinite, match="update 2: value 0"):
            aggregate(updates, f=1, threads=4)

    def test_a_float64_beyond_float32_is_named(self) -> None:
        updates = [np.ones(3), np.array([1.0, 1e300, 1.0])]
        with pytest.raises(BoundExceeded, match=r"update 1: value 1 is 1e\+300"):
            aggregate(updates, "mean")

    def test_values_beyond_the_lattice_are_refused_unless_only_liars_have_them(self) -> None:
        updates = [np.full(2, 1e38, np.float32), *HONEST]
        assert aggregate(updates, "median", f=1).tolist() == pytest.approx([1.5, 2.5], abs=1e-3)
        with pytest.raises(BoundExceeded, match="scale the updates down"):
            aggregate(updates, "mean")

    @pytest.mark.parametrize(
        ("update", "words"),
        [
            (np.float64([1, 2]), "update 2 is an array of float64"),
            (np.float32([1, 2, 3]), r"update 2 is an array of float32 \(3,\)"),
            (np.int32([1, 2]), "update 2 holds int32"),
            (np.array([1j, 2]), "update 2 holds complex128"),
            (np.array([1, "a"], object), "update 2 holds object"),
            (np.ma.masked_array(np.float32([1, 2]), [0, 1]), "update 2 is an array; expected floats"),
            ({"w": np.float32([1, 2])}, "update 2 is a mapping, update 0 is an array"),
            (torch.ones(2), "update 2 is a tensor, update 0 is an array"),
            (b"FMUP", "update 2 is an encoded update"),
            ([1.0, 2.0], "update 2 is a list"),
            (None, "update 2 is a NoneType"),
        ],
    )
    def test_an_update_unlike_the_first_is_named(self, update: object, words: str) -> None:
        with pytest.raises(LayoutMismatch, match=words):
            aggregate([HONEST[0], HONEST[1], update], "median", f=1)

    def test_a_missing_an_extra_and_a_differently_shaped_tensor_are_named(self) -> None:
        first = {"w": np.ones(2, np.float32), "b": np.ones(1, np.float32)}
        with pytest.raises(LayoutMismatch, match="update 1 lacks tensor 'b'"):
            aggregate([first, {"w": first["w"]}], "mean")
        with pytest.raises(LayoutMismatch, match="update 1 has tensor 'c'"):
            aggregate([first, {**first, "c": first["b"]}], "mean")
        with pytest.raises(LayoutMismatch, match=r"update 1: tensor 'b' is an array of float32 \(2,\)"):
            aggregate([first, {**first, "b": first["w"]}], "mean")

    @pytest.mark.parametrize(
        "tensor",
        [torch.ones(2, dtype=torch.int64), torch.ones(2).to_sparse(), torch.ones(2, device="meta")],
        ids=["integers", "sparse", "meta"],
    )
    def test_a_tensor_without_dense_floats_is_refused(self, tensor: torch.Tensor) -> None:
        with pytest.raises(LayoutMismatch, match="update 0"):
            aggregate([tensor] * 3, "mean")

    @pytest.mark.parametrize("updates", [{"w": HONEST[0]}, b"FMUP", "a", 5, HONEST[0], Path("a")], ids=str)
    def test_what_is_no_sequence_of_updates_is_refused(self, updates: object) -> None:
        with pytest.raises(LayoutMismatch):
            aggregate(updates, "mean")  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "empty", [np.zeros((3, 0), np.float32), [{}], [{"": HONEST[0]}], [{1: HONEST[0]}]]
    )
    def test_empty_arrays_and_nameless_tensors_are_refused(self, empty: object) -> None:
        with pytest.raises(LayoutInvalid, match="update 0"):
            aggregate(empty, "mean")  # type: ignore[arg-type]

    def test_no_updates_and_too_many_are_refused(self) -> None:
        with pytest.raises(TooFewUpdates):
            aggregate([], "mean")
        with pytest.raises(BoundExceeded, match="256"):
            aggregate((HONEST[0] for _ in range(10**9)), "mean")

    @pytest.mark.parametrize(
        ("rule", "f", "pre"),
        [("trimmed-mean", 2, ()), ("krum", 1, ()), ("mean", 4, ()), ("median", 1, ("bucketing:s=2",))],
    )
    def test_more_liars_than_the_rule_survives_are_refused(self, rule: str, f: int, pre: tuple[str]) -> None:
        with pytest.raises(TooFewUpdates):
            aggregate(HONEST, rule, f=f, pre=pre)

    @pytest.mark.parametrize(
        "options",
        [
            {"rule": "median-of-means"},
            {"rule": None},
            {"pre": ["nmn"]},
            {"pre": ["bucketing"]},
            {"params": {"m": 3}},
            {"f": -1},
            {"f": 1.0},
            {"f": 10**9},
            {"seed": -1},
            {"seed": 2**64},
            {"rule": "centered-clipping"},
            {"rule": "centered-clipping", "params": {"tau": "long"}},
            {"rule": "weighted-mean", "weights": [1, 1, 1, 1]},
        ],
        ids=str,
    )
    def test_an_unknown_rule_or_parameter_is_refused(self, options: dict[str, object]) -> None:
        with pytest.raises(RuleInvalid):
            aggregate(HONEST, **options)  # type: ignore[arg-type]

    @pytest.mark.parametrize("weights", [[1, 2, 3], [1, 1, 1, -1], [0] * 4, [1, 1, 1, 1.5], [True] * 4, None])
    def test_bad_weights_are_refused(self, weights: list[int] | None) -> None:
        with pytest.raises(WeightsInvalid):
            aggregate(HONEST, "weighted-mean", params={"cap": 9}, weights=weights)

    def test_weights_for_a_rule_that_reads_none_are_refused(self) -> None:
        with pytest.raises(WeightsInvalid, match="median reads weights only with the parameter cap"):
            aggregate(HONEST, "median", weights=[1, 1, 1, 1])

    def test_other_bad_options_are_refused_by_name(self) -> None:
        with pytest.raises(LatticeInvalid):
            aggregate(HONEST, "mean", bits=12)
        with pytest.raises(BackendUnavailable):
            aggregate(HONEST, "mean", backend="abacus")
        with pytest.raises(BoundExceeded, match="threads"):
            aggregate(HONEST, "mean", threads=0)
        with pytest.raises(ReferenceMissing):
            aggregate(HONEST, "centered-clipping", params={"tau": 1, "history": 1})
        with pytest.raises(RuleInvalid, match="mean reads no reference"):
            aggregate(HONEST, "mean", reference=HONEST[0])
        with pytest.raises(LayoutMismatch, match="the reference"):
            aggregate(HONEST, "centered-clipping", params={"tau": 1, "history": 1}, reference=np.ones(2))

    def test_encoded_updates_need_layout_and_lattice_and_floats_none(self) -> None:
        with pytest.raises(LayoutMismatch, match="layout and the lattice"):
            aggregate([encoded(0)], "mean")
        with pytest.raises(LayoutMismatch, match="leave them out"):
            aggregate(HONEST, "mean", layout=LAYOUT, lattice=LATTICE)
        with pytest.raises(LatticeInvalid):
            aggregate([encoded(0)], "mean", layout=LAYOUT, lattice=Lattice(16, (0,)))

    def test_a_bad_encoded_update_is_named(self) -> None:
        with pytest.raises(WrongMagic, match="update 1"):
            aggregate([encoded(0), b"x" * 90], "mean", layout=LAYOUT, lattice=LATTICE)
