"""Where the contracts of one federation stand: a value that a configuration file carries."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass

from folkmoot.contracts.eip712 import to_checksum
from folkmoot.contracts.types import Address, Domain, LedgerError

__all__ = ["BadDeployment", "Deployment"]

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
_NUMBERS = ("chain_id", "block")
_ADDRESSES = ("registry", "board", "rounds")


class BadDeployment(LedgerError):
    """A document does not describe a deployment."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """The three contracts of a federation. `block` is no later than the first event of any of them."""

    chain_id: int
    registry: Address
    board: Address
    rounds: Address
    block: int

    @property
    def domain(self) -> Domain:
        """The EIP-712 domain of this federation's signatures."""
        return Domain(self.chain_id, self.rounds)

    def to_toml(self) -> str:
        """A TOML document that `from_toml` reads."""
        return (
            f"chain_id = {self.chain_id}\n"
            f'registry = "{self.registry}"\n'
            f'board = "{self.board}"\n'
            f'rounds = "{self.rounds}"\n'
            f"block = {self.block}\n"
        )

    @classmethod
    def from_toml(cls, text: str) -> Deployment:
        """Inverse of to_toml. Raises BadDeployment, naming the key."""
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise BadDeployment(f"the deployment is not TOML: {error}") from error
        if unknown := sorted(document.keys() - {*_NUMBERS, *_ADDRESSES}):
            raise BadDeployment(f"the deployment has an unknown key {unknown[0]!r}: remove it")
        for key in _NUMBERS:
            value = document.get(key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise BadDeployment(f"the deployment's {key} is a number from 0 on, found {value!r}")
        for key in _ADDRESSES:
            value = document.get(key)
            if not isinstance(value, str) or not _ADDRESS.fullmatch(value):
                raise BadDeployment(
                    f"the deployment's {key} is 0x and 40 hexadecimal digits, found {value!r}"
                )
        registry, board, rounds = (to_checksum(bytes.fromhex(document[key][2:])) for key in _ADDRESSES)
        return cls(document["chain_id"], registry, board, rounds, document["block"])
