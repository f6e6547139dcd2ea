"""Attacks on training data: what a liar does to its examples before it trains as everybody does.

Functions of arrays and a seed; nothing here trains.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.errors import AttackInvalid

__all__ = ["flip_labels", "stamp_trigger"]


def flip_labels(labels: npt.NDArray[np.integer], classes: int) -> npt.NDArray[np.int64]:
    """y -> classes - 1 - y for labels 0 to classes - 1, same shape, int64 (Fang, Cao, Jia, Gong 2020).

    Raises AttackInvalid when a label is outside that range.
    """
    _require_labels(labels, classes)
    return np.asarray(classes - 1 - labels.astype(np.int64))


def stamp_trigger(
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.integer],
    classes: int,
    rng: np.random.Generator,
    *,
    fraction: float = 0.2,
    target: int = 0,
    size: int = 2,
    value: float | None = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Backdoor: on round(fraction * n) examples drawn by `rng`, stamp a trigger and set the label to `target`
    (Gu, Dolan-Gavitt, Garg 2017, "BadNets"). Copies; the arguments stay as they are.

    features: float32 (n, ..., h, w), where the trigger is the size x size square in the last rows and
    columns, or (n, k), where it is the last size^2 features. labels: integers (n,) from 0 to classes - 1.
    value: of the stamped features, the largest of `features` when None. With fraction = 1 on test data the
    share of predictions that are `target` is the attack's success.

    Raises AttackInvalid for arrays that do not match, labels, target or fraction out of range, and a trigger
    larger than an example.
    """
    _require_labels(labels, classes)
    if features.ndim < 2 or labels.shape != (len(features),) or features.size == 0:
        raise AttackInvalid(
            f"features {features.shape} and labels {labels.shape}: expected (n, ...) and (n,)"
        )
    if not 0 <= target < classes:
        raise AttackInvalid(f"target is {target}, expected 0 to {classes - 1}")
    if not 0.0 <= fraction <= 1.0:
        raise AttackInvalid(f"fraction is {fraction}, expected 0 to 1")
    room = math.isqrt(features.shape[1]) if features.ndim == 2 else min(features.shape[-2:])
    if not 1 <= size <= room:
        raise AttackInvalid(f"size is {size}, expected 1 to {room} for features {features.shape}")
    stamp = float(features.max()) if value is None else value
    if not math.isfinite(stamp):
        raise AttackInvalid(f"value is {stamp}, expected a finite number")
    picked = rng.permutation(len(features))[: round(fraction * len(features))]
    stamped = features.astype(np.float32)
    if features.ndim == 2:
        stamped[picked, -size * size :] = stamp
    else:
        stamped[picked, ..., -size:, -size:] = stamp
    relabelled = labels.astype(np.int64)
    relabelled[picked] = target
    return stamped, relabelled


def _require_labels(labels: npt.NDArray[np.integer], classes: int) -> None:
    if labels.size and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise AttackInvalid(f"labels lie in [{labels.min()}, {labels.max()}], expected [0, {classes - 1}]")
