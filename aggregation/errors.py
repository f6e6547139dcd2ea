"""Everything that can go wrong in the arithmetic, by name."""

from __future__ import annotations


class AggregationError(Exception):
    """Base of every failure of this room."""


class LayoutInvalid(AggregationError):
    """A layout, or the document it is read from, breaks its bounds."""


class LayoutMismatch(AggregationError):
    """Arrays do not have the names, shapes or dtypes that the layout asks for."""


class LatticeInvalid(AggregationError):
    """A lattice has unknown bits, an exponent out of range, or does not fit the layout."""


class NotFinite(AggregationError):
    """A delta holds NaN or infinity; the message names the tensor."""


class UpdateError(AggregationError):
    """Base of every refusal of an encoded update: a deterministic function of its bytes.

    The checks run in the order in which the subclasses stand below, so two peers that hold the same bytes
    name the same reason.
    """


class UpdateTruncated(UpdateError):
    """Fewer bytes than the header has."""


class WrongMagic(UpdateError):
    """The bytes are not an encoded update."""


class WrongVersion(UpdateError):
    """An encoded update of a version that this code does not read."""


class WrongBits(UpdateError):
    """Integers of another width than the round's lattice."""


class WrongLayout(UpdateError):
    """An update for a model with other tensors."""


class WrongLattice(UpdateError):
    """An update on other exponents than the round's lattice."""


class WrongLength(UpdateError):
    """More or fewer integers than the layout has values."""


class ForbiddenValue(UpdateError):
    """The integer -2^(bits-1), which has no negative on the lattice."""


class RuleInvalid(AggregationError):
    """An unknown rule, or a parameter that is missing, unknown or out of range."""


class TooFewUpdates(AggregationError):
    """Fewer updates than the rule needs to mean anything with its f."""


class WeightsInvalid(AggregationError):
    """Claimed weights that are missing, negative, of the wrong number, or zero in total."""


class BoundExceeded(AggregationError):
    """An input so large that exact arithmetic could overflow."""


class BackendUnavailable(AggregationError):
    """A backend that does not exist or whose library is not installed."""


class ModelOverflow(AggregationError):
    """Adding the aggregate would make a weight infinite or NaN; the message names the first one."""


class FlushToZero(AggregationError):
    """This thread's processor mode rounds subnormal numbers to zero, so float32 addition is not IEEE 754."""


class ScoreInvalid(AggregationError):
    """An unknown score, or weights that are negative or zero in total."""


class AttackInvalid(AggregationError):
    """An unknown attack, or a parameter that is missing, unknown or out of range."""


class SearchTooHard(AggregationError):
    """An exact search over subsets that would go beyond its fixed number of steps on these updates."""


class ReferenceMissing(AggregationError):
    """A rule that starts from the aggregate before this one, which was not given."""


class OptimizerInvalid(AggregationError):
    """An unknown server optimizer, a parameter missing, unknown or out of range, or the state of another."""
