"""Exact arithmetic on model updates: lattice, robust rules, scores, attacks. Pure functions, no clock.

Floats become integers in `encode` and floats again in `apply_aggregate`; everything between is exact, so
that every peer computes the same bytes.
"""

from folkmoot.aggregation.apply import apply_aggregate
from folkmoot.aggregation.attack_training import flip_labels, stamp_trigger
from folkmoot.aggregation.attacks import (
    ATTACKS,
    Attack,
    AttackTarget,
    Knowledge,
    craft_updates,
    visible_updates,
)
from folkmoot.aggregation.backend import BACKENDS
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
    OptimizerInvalid,
    ReferenceMissing,
    RuleInvalid,
    ScoreInvalid,
    SearchTooHard,
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
from folkmoot.aggregation.exact import Aggregate, aggregate_updates, aggregate_values
from folkmoot.aggregation.gram import Gram
from folkmoot.aggregation.interface import aggregate
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
from folkmoot.aggregation.optimizer_step import OptimizerState, initial_state, optimizer_step
from folkmoot.aggregation.optimizers import OPTIMIZERS, OptimizerSpec, optimizer_spec
from folkmoot.aggregation.plans import MAX_UPDATES
from folkmoot.aggregation.rules import (
    PREAGGREGATORS,
    RULES,
    PreSpec,
    Rule,
    RuleSpec,
    minimum_updates,
    rule_spec,
)
from folkmoot.aggregation.scores import FULL_SCORE, SCORES, ScoreSpec, scores
from folkmoot.aggregation.update_codec import check_update, decode, encode, encode_integers, update_size

__all__ = [
    "ATTACKS",
    "BACKENDS",
    "FULL_SCORE",
    "MAX_EXPONENT",
    "MAX_UPDATES",
    "MIN_EXPONENT",
    "OPTIMIZERS",
    "PREAGGREGATORS",
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
    "Knowledge",
    "Lattice",
    "LatticeInvalid",
    "Layout",
    "LayoutInvalid",
    "LayoutMismatch",
    "ModelOverflow",
    "NotFinite",
    "OptimizerInvalid",
    "OptimizerSpec",
    "OptimizerState",
    "PreSpec",
    "ReferenceMissing",
    "Rule",
    "RuleInvalid",
    "RuleSpec",
    "ScoreInvalid",
    "ScoreSpec",
    "SearchTooHard",
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
    "aggregate",
    "aggregate_updates",
    "aggregate_values",
    "apply_aggregate",
    "check_update",
    "craft_updates",
    "decode",
    "dequantize",
    "encode",
    "encode_integers",
    "flip_labels",
    "initial_state",
    "minimum_updates",
    "needed_exponents",
    "next_exponents",
    "optimizer_spec",
    "optimizer_step",
    "quantize",
    "rule_spec",
    "scores",
    "stamp_trigger",
    "update_size",
    "visible_updates",
]
