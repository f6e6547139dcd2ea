"""The same kernels in PyTorch on the CPU. Never `torch._int_mm`: without VNNI it saturates and is wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from folkmoot.aggregation.backend import Backend, exact_columns
from folkmoot.aggregation.lattice import LatticeIntegers
from folkmoot.aggregation.networks import Kept, network_for_sum


class TorchBackend:
    """Kernels in PyTorch; see `Backend` for what each computes."""

    def products(
        self, block: LatticeIntegers, extra: npt.NDArray[np.int64] | None, magnitudes: Sequence[int]
    ) -> npt.NDArray[np.int64]:
        rows, columns = len(magnitudes), block.shape[1]
        step = min(exact_columns(max(magnitudes)), columns)
        floats = torch.empty((rows, columns), dtype=torch.float64)
        floats[: block.shape[0]] = _tensor(block)
        if extra is not None:
            floats[-1] = torch.from_numpy(extra)
        total = torch.zeros((rows, rows), dtype=torch.int64)
        for start in range(0, columns, step):
            part = floats[:, start : start + step]
            total += (part @ part.T).to(torch.int64)
        return _array(total)

    def weighted_sum(self, block: LatticeIntegers, weights: Sequence[int]) -> npt.NDArray[np.int64]:
        total = torch.zeros(block.shape[1], dtype=torch.int64)
        for row, weight in zip(_tensor(block), weights, strict=True):
            if weight:
                total.add_(row.to(torch.int64), alpha=weight)
        return _array(total)

    def rank_sum(self, block: LatticeIntegers, ranks: tuple[int, ...]) -> npt.NDArray[np.int64]:
        lines = list(_tensor(block).clone())
        for comparison in network_for_sum(len(lines), ranks):
            low, high = lines[comparison.low], lines[comparison.high]
            if comparison.kept is not Kept.HIGH:
                lines[comparison.low] = torch.minimum(low, high)
            if comparison.kept is not Kept.LOW:
                lines[comparison.high] = torch.maximum(low, high)
        total = torch.zeros(block.shape[1], dtype=torch.int64)
        for rank in ranks:
            total += lines[rank]
        return _array(total)


def _tensor(block: LatticeIntegers) -> torch.Tensor:
    native = np.ascontiguousarray(block, dtype=block.dtype.newbyteorder("="))
    return torch.from_numpy(native if native.flags.writeable else native.copy())


def _array(tensor: torch.Tensor) -> npt.NDArray[np.int64]:
    array: npt.NDArray[np.int64] = tensor.numpy()
    return array


BACKEND: Backend = TorchBackend()
