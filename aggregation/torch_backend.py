"""The same kernels in PyTorch, on the CPU or a CUDA device.

Never `torch._int_mm`: without VNNI it saturates and is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from folkmoot.aggregation.backend import Backend, Rows, SeparateCombination, Units, exact_columns
from folkmoot.aggregation.errors import BackendUnavailable
from folkmoot.aggregation.mixing_terms import MixingTerms
from folkmoot.aggregation.networks import Comparison, Kept, network_for_sum, sorting_network


class TorchBackend(SeparateCombination):
    """Kernels in PyTorch; see `Backend` for what each computes."""

    block_bytes = 1 << 20

    def __init__(self, device: str) -> None:
        self._device = device

    def smallest(self, rows: Rows) -> int:
        return int(rows.matrix.min())

    def products(self, rows: Rows) -> tuple[npt.NDArray[np.int64], int]:
        block = self._tensor(rows)
        step = exact_columns(1 << (14 if block.element_size() == 1 else 15))
        total = torch.zeros((rows.count, rows.count), dtype=torch.int64, device=self._device)
        for start in range(0, rows.columns, step):
            part = block[:, start : start + step].to(torch.float64)
            total += (part @ part.T).to(torch.int64)
        return _array(total), int(block.min())

    def weighted_sum(self, rows: Rows, weights: Sequence[int]) -> npt.NDArray[np.int64]:
        total = self._zeros(rows)
        for row, weight in zip(self._tensor(rows), weights, strict=True):
            if weight:
                total.add_(row.to(torch.int64), alpha=weight)
        return _array(total)

    def rank_sum(self, rows: Rows, ranks: tuple[int, ...]) -> npt.NDArray[np.int64]:
        lines = self._exchanged(rows, network_for_sum(rows.count, ranks))
        return _array(self._total([lines[rank] for rank in ranks], rows))

    def nearest_sum(self, rows: Rows, kept: int, centre: tuple[int, ...]) -> npt.NDArray[np.int64]:
        lines = self._exchanged(rows, sorting_network(rows.count))
        middle = 2 * self._total([lines[rank] for rank in centre], rows)
        total = self._total(lines[:kept], rows)
        for low, high in zip(lines, lines[kept:], strict=False):
            smaller, larger = low.to(torch.int64), high.to(torch.int64)
            total += torch.where((smaller + larger) * len(centre) < middle, larger - smaller, 0)
        return _array(total)

    def weighted_median(self, rows: Rows, weights: Sequence[int]) -> npt.NDArray[np.int64]:
        values, below = self._weighed(rows, weights)
        doubled, whole = 2 * below, sum(weights)
        lower = (doubled < whole).sum(dim=0, keepdim=True)
        upper = (doubled <= whole).sum(dim=0, keepdim=True)
        return _array((values.gather(0, lower) + values.gather(0, upper))[0])

    def weighted_trimmed_sum(self, rows: Rows, weights: Sequence[int], trimmed: int) -> npt.NDArray[np.int64]:
        values, below = self._weighed(rows, weights)
        inside = below.clamp(trimmed, sum(weights) - trimmed)
        first = torch.full((1, rows.columns), trimmed, dtype=torch.int64, device=self._device)
        return _array((torch.diff(inside, dim=0, prepend=first) * values).sum(dim=0))

    def mix(self, rows: Rows, terms: MixingTerms) -> npt.NDArray[np.int32]:
        block = self._tensor(rows).to(torch.int64)
        everything = block.sum(dim=0)
        mixed = torch.empty((len(terms.base), rows.columns), dtype=torch.int32, device=self._device)
        for row, base in enumerate(terms.base.tolist()):
            total = everything * base
            for term in range(int(terms.starts[row]), int(terms.starts[row + 1])):
                total.add_(block[int(terms.indices[term])], alpha=int(terms.factors[term]))
            mixed[row] = (total + (1 << terms.shift >> 1)) >> terms.shift
        array: npt.NDArray[np.int32] = mixed.cpu().numpy()
        return array

    def row_products(self, rows: Rows, pivot: int) -> tuple[npt.NDArray[np.int64], int]:
        block = self._tensor(rows).to(torch.int64)
        found = _array(torch.stack([(block * block).sum(dim=1), (block * block[pivot]).sum(dim=1)]))
        return found, int(block.min())

    def values(
        self, numerators: npt.NDArray[np.int64], denominator: int, units: Units, out: npt.NDArray[np.float32]
    ) -> None:
        quotients = torch.from_numpy(numerators).to(self._device).to(torch.float64) / float(denominator)
        for columns, unit in units.runs():
            quotients[columns] *= unit
        out[:] = quotients.to(torch.float32).cpu().numpy()

    def _tensor(self, rows: Rows) -> torch.Tensor:
        matrix = rows.matrix
        native = np.ascontiguousarray(matrix, dtype=matrix.dtype.newbyteorder("="))
        tensor = torch.from_numpy(native if native.flags.writeable else native.copy())
        return tensor.to(self._device)

    def _zeros(self, rows: Rows) -> torch.Tensor:
        return torch.zeros(rows.columns, dtype=torch.int64, device=self._device)

    def _total(self, lines: Sequence[torch.Tensor], rows: Rows) -> torch.Tensor:
        total = self._zeros(rows)
        for line in lines:
            total += line
        return total

    def _exchanged(self, rows: Rows, comparisons: Iterable[Comparison]) -> list[torch.Tensor]:
        lines = list(self._tensor(rows))
        for comparison in comparisons:
            low, high = lines[comparison.low], lines[comparison.high]
            if comparison.kept is not Kept.HIGH:
                lines[comparison.low] = torch.minimum(low, high)
            if comparison.kept is not Kept.LOW:
                lines[comparison.high] = torch.maximum(low, high)
        return lines

    def _weighed(self, rows: Rows, weights: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        values, order = self._tensor(rows).to(torch.int64).sort(dim=0, stable=True)
        masses = torch.tensor(weights, dtype=torch.int64, device=self._device)
        return values, masses[order].cumsum(dim=0)


def _array(tensor: torch.Tensor) -> npt.NDArray[np.int64]:
    array: npt.NDArray[np.int64] = tensor.cpu().numpy()
    return array


def backend(name: str) -> Backend:
    """PyTorch on the CPU ("torch") or on the CUDA device ("cuda"). Raises BackendUnavailable without one."""
    if name == "torch":
        return TorchBackend("cpu")
    if not torch.cuda.is_available():
        raise BackendUnavailable(
            "backend 'cuda' needs a CUDA device and a CUDA build of PyTorch; use 'torch'"
        )
    return TorchBackend("cuda")
