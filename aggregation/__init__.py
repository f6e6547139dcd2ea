"""Exact arithmetic on model updates: lattice, robust rules, scores, attacks. Pure functions, no clock.

Floats become integers in `encode` and floats again in `apply_aggregate`; everything between is exact, so
that every peer computes the same bytes.
"""

from folkmoot.aggregation.aggregate import Aggregate, aggregate_updates
from folkmoot.aggregation.apply import apply_aggregate
from folkmoot.aggregation.attacks import ATTACKS, Attack, AttackTarget, craft_updates, flip_labels
from folkmoot.aggregation.backend import BACKENDS, MAX_UPDATES
from folkmoot.aggregation.errors import (
    AggregationError,
    AttackInvalid,
    BackendUnavailable,
    BoundExceeded,
    FlushToZero,
    ForbiddenValue,
    LatticeInvalid,
    LayoutInvalid,
    LayoutMismatch,
    ModelOverflow,
    NotFinite,
    RuleInvalid,
    ScoreInvalid,
    TooFewUpdates,
    UpdateError,
    UpdateTruncated,
    WeightsInvalid,
    WrongBits,
    WrongLattice,
    WrongLayout,
    WrongLength,
    WrongMagic,
    WrongVersion,
)
from folkmoot.aggregation.gram import Gram
from folkmoot.aggregation.lattice import (
    MAX_EXPONENT,
    MIN_EXPONENT,
    Lattice,
    dequantize,
    needed_exponents,
    next_exponents,
    quantize,
)
from folkmoot.aggregation.layout import Layout, TensorSpec
from folkmoot.aggregation.rules import RULES, Rule, RuleSpec, minimum_updates
from folkmoot.aggregation.scores import FULL_SCORE, SCORES, ScoreSpec, scores
from folkmoot.aggregation.update_codec import check_update, decode, encode, encode_integers, update_size

__all__ = [
    "ATTACKS",
    "BACKENDS",
    "FULL_SCORE",
    "MAX_EXPONENT",
    "MAX_UPDATES",
    "MIN_EXPONENT",
    "RULES",
    "SCORES",
    "Aggregate",
    "AggregationError",
    "Attack",
    "AttackInvalid",
    "AttackTarget",
    "BackendUnavailable",
    "BoundExceeded",
    "FlushToZero",
    "ForbiddenValue",
    "Gram",
    "Lattice",
    "LatticeInvalid",
    "Layout",
    "LayoutInvalid",
    "LayoutMismatch",
    "ModelOverflow",
    "NotFinite",
    "Rule",
    "RuleInvalid",
    "RuleSpec",
    "ScoreInvalid",
    "ScoreSpec",
    "TensorSpec",
    "TooFewUpdates",
    "UpdateError",
    "UpdateTruncated",
    "WeightsInvalid",
    "WrongBits",
    "WrongLattice",
    "WrongLayout",
    "WrongLength",
    "WrongMagic",
    "WrongVersion",
    "aggregate_updates",
    "apply_aggregate",
    "check_update",
    "craft_updates",
    "decode",
    "dequantize",
    "encode",
    "encode_integers",
    "flip_labels",
    "minimum_updates",
    "needed_exponents",
    "next_exponents",
    "quantize",
    "scores",
    "update_size",
]
