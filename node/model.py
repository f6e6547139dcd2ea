"""A model as a blob: a 40-byte header and the float32 values, little endian, in the layout's order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation import Layout
from folkmoot.node.home import replace_file

_MAGIC = b"FMMODEL1"


class ModelMalformed(Exception):
    """The bytes are not a model of this layout."""


def model_size(layout: Layout) -> int:
    """Bytes of a model blob."""
    return len(_MAGIC) + 32 + 4 * layout.size


def write_model(path: Path, layout: Layout, weights: npt.NDArray[np.float32]) -> None:
    """Write flat float32 weights of shape (layout.size,)."""
    layout.require_flat(weights)
    replace_file(path, _MAGIC + layout.digest() + weights.astype("<f4", copy=False).tobytes(), mode=0o644)


def read_model(path: Path, layout: Layout) -> npt.NDArray[np.float32]:
    """Flat float32 weights of shape (layout.size,). Raises ModelMalformed."""
    with path.open("rb") as stream:
        header = stream.read(len(_MAGIC) + 32)
        body = stream.read(4 * layout.size + 1)
    if header != _MAGIC + layout.digest() or len(body) != 4 * layout.size:
        raise ModelMalformed(
            f"{path.name} is not a model with the {len(layout.tensors)} tensors of this task"
        )
    weights = np.frombuffer(body, "<f4").astype(np.float32)
    if not np.isfinite(weights).all():
        raise ModelMalformed(f"{path.name} holds values that are NaN or infinite")
    return weights
