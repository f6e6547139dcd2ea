"""The compiled contracts as Python sees them: calls, results, events and errors, by name.

Reads contracts/artifacts/*.json. Pure functions of bytes; no chain is asked.
Source: Solidity ABI specification.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError, EncodingError
from eth_utils.crypto import keccak

from folkmoot.contracts.eip712 import UnencodableField
from folkmoot.contracts.types import LedgerError, LedgerRefused

__all__ = ["Abi", "ContractEvent", "UnreadableAnswer", "refusal", "registry", "rounds", "tasks"]


class UnreadableAnswer(LedgerError):
    """Bytes from the chain are not what the contract's interface says."""


@dataclass(frozen=True, slots=True)
class _Signature:
    name: str
    inputs: tuple[str, ...]
    input_names: tuple[str, ...]
    indexed: tuple[bool, ...]
    outputs: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"{self.name}({','.join(self.inputs)})"


@dataclass(frozen=True, slots=True)
class ContractEvent:
    """A decoded log: the event's name and its arguments by name."""

    name: str
    arguments: Mapping[str, Any]


class Abi:
    """One contract's interface and creation code."""

    def __init__(self, name: str, artifact: Mapping[str, Any]) -> None:
        self.name = name
        self.bytecode = bytes.fromhex(str(artifact["bytecode"]).removeprefix("0x"))
        signatures = [(entry["type"], _signature(entry)) for entry in artifact["abi"]]
        self._constructor = next((s.inputs for kind, s in signatures if kind == "constructor"), ())
        self._functions = {s.name: s for kind, s in signatures if kind == "function"}
        self._selectors = {keccak(s.text.encode())[:4]: s for s in self._functions.values()}
        self._events = {keccak(s.text.encode()): s for kind, s in signatures if kind == "event"}
        self._topics = {s.name: topic for topic, s in self._events.items()}
        self.errors = {keccak(s.text.encode())[:4]: s for kind, s in signatures if kind == "error"}

    def creation(self, *arguments: object) -> bytes:
        """Creation code with the constructor's arguments."""
        return self.bytecode + encode(self._constructor, arguments)

    def call(self, function: str, *arguments: object) -> bytes:
        """Call data of a function. Raises UnencodableField when an argument does not fit its type."""
        signature = self._functions[function]
        try:
            return keccak(signature.text.encode())[:4] + encode(signature.inputs, arguments)
        except EncodingError as error:
            raise UnencodableField(f"{self.name}.{function}: {error}") from error

    def result(self, function: str, output: bytes) -> tuple[Any, ...]:
        """What a function returned. Raises UnreadableAnswer."""
        return _decode(self._functions[function].outputs, output, f"{self.name}.{function}")

    def read_call(self, data: bytes) -> tuple[str, tuple[Any, ...]]:
        """Function and arguments of call data. Raises UnreadableAnswer."""
        signature = self._selectors.get(data[:4])
        if signature is None:
            raise UnreadableAnswer(f"{self.name} has no function with selector 0x{data[:4].hex()}")
        return signature.name, _decode(signature.inputs, data[4:], f"{self.name}.{signature.name}")

    def topic(self, event: str) -> bytes:
        """First topic of an event's logs."""
        return self._topics[event]

    def event(self, topics: Sequence[bytes], data: bytes) -> ContractEvent | None:
        """A log of this contract; None for an event that the interface does not have.

        An indexed argument must be of a type that fits a word. Raises UnreadableAnswer.
        """
        signature = self._events.get(topics[0]) if topics else None
        if signature is None:
            return None
        name = f"{self.name}.{signature.name}"
        parts = list(zip(signature.input_names, signature.inputs, signature.indexed, strict=True))
        words = [(field, kind) for field, kind, indexed in parts if indexed]
        rest = [(field, kind) for field, kind, indexed in parts if not indexed]
        if len(topics) != len(words) + 1:
            raise UnreadableAnswer(f"{name} has {len(words) + 1} topics, found {len(topics)}")
        arguments = {
            field: _decode((kind,), topic, name)[0]
            for (field, kind), topic in zip(words, topics[1:], strict=True)
        }
        values = _decode(tuple(kind for _, kind in rest), data, name)
        arguments.update(zip((field for field, _ in rest), values, strict=True))
        return ContractEvent(signature.name, arguments)


@cache
def registry() -> Abi:
    """MemberRegistry."""
    return _load("MemberRegistry")


@cache
def tasks() -> Abi:
    """TaskBoard."""
    return _load("TaskBoard")


@cache
def rounds() -> Abi:
    """RoundManager."""
    return _load("RoundManager")


def refusal(data: bytes) -> LedgerRefused:
    """Revert data as the error that a contract named. Unknown data keeps its hexadecimal form."""
    signature = _errors().get(data[:4])
    if signature is not None:
        try:
            return LedgerRefused(signature.name, tuple(decode(signature.inputs, data[4:])))
        except (DecodingError, OverflowError):
            return LedgerRefused("UnreadableRevert", ("0x" + data.hex(),))
    return LedgerRefused("UnknownRevert", ("0x" + data.hex(),))


@cache
def _errors() -> dict[bytes, _Signature]:
    builtin = {
        keccak(text.encode())[:4]: _Signature(name, kinds, (), (), ())
        for name, kinds, text in (
            ("Error", ("string",), "Error(string)"),
            ("Panic", ("uint256",), "Panic(uint256)"),
        )
    }
    return {**builtin, **registry().errors, **tasks().errors, **rounds().errors}


def _load(name: str) -> Abi:
    artifact = files("folkmoot.contracts").joinpath("artifacts", f"{name}.json")
    return Abi(name, json.loads(artifact.read_text(encoding="utf-8")))


def _signature(entry: Mapping[str, Any]) -> _Signature:
    inputs = entry.get("inputs", [])
    return _Signature(
        entry.get("name", ""),
        tuple(_kind(part) for part in inputs),
        tuple(part["name"] or f"argument{i}" for i, part in enumerate(inputs)),
        tuple(bool(part.get("indexed")) for part in inputs),
        tuple(_kind(part) for part in entry.get("outputs", [])),
    )


def _kind(part: Mapping[str, Any]) -> str:
    kind = str(part["type"])
    if not kind.startswith("tuple"):
        return kind
    return f"({','.join(_kind(inner) for inner in part['components'])}){kind.removeprefix('tuple')}"


def _decode(kinds: Sequence[str], data: bytes, name: str) -> tuple[Any, ...]:
    try:
        return tuple(decode(kinds, data))
    except (DecodingError, OverflowError, UnicodeDecodeError) as error:
        raise UnreadableAnswer(
            f"{name} answered with bytes that do not fit its interface ({error}): are these the contracts "
            "of this version?"
        ) from error
