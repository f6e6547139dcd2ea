"""What a rule may look at when it decides: how many updates, f, its parameters, claims and distances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from folkmoot.aggregation.errors import ReferenceMissing, WeightsInvalid
from folkmoot.aggregation.gram import Gram


class Looks(Enum):
    """What a rule looks at beside the values of a column."""

    NOTHING = "nothing"
    ROW = "norms and the inner products with one update, the pivot"
    DISTANCES = "the whole Gram matrix"


@dataclass(frozen=True, slots=True)
class Case:
    """One aggregation: `count` rows, f of them perhaps false.

    `products` is the Gram matrix of the rows for rules that look at distances. With a reference, the
    aggregate before this one, it has a last row and column more.
    """

    count: int
    f: int
    parameters: Mapping[str, int]
    claims: tuple[int, ...] | None = None
    products: Gram | None = None

    @property
    def gram(self) -> Gram:
        """The Gram matrix of the rows, without the reference."""
        assert self.products is not None
        return self.products if self.products.size == self.count else self.products.first(self.count)

    @property
    def gram_with_reference(self) -> Gram:
        """The Gram matrix whose last row is the reference. Raises ReferenceMissing without one."""
        assert self.products is not None
        if self.products.size == self.count:
            raise ReferenceMissing(
                "this rule starts from the aggregate before this one; give it as reference"
            )
        return self.products

    def capped_claims(self) -> tuple[int, ...]:
        """min(claimed examples, cap) of every row.

        Raises WeightsInvalid when claims are missing, negative, of another number, or zero in total.
        """
        if self.claims is None or len(self.claims) != self.count:
            found = "none" if self.claims is None else str(len(self.claims))
            raise WeightsInvalid(
                f"the rule needs the claimed examples of {self.count} updates, found {found}"
            )
        if negative := [weight for weight in self.claims if weight < 0]:
            raise WeightsInvalid(f"a claimed number of examples is {negative[0]}, expected 0 or more")
        weights = tuple(min(weight, self.parameters["cap"]) for weight in self.claims)
        if not any(weights):
            raise WeightsInvalid("every update claims 0 examples, so their weighted mean does not exist")
        return weights
