"""EIP-712: the struct hashes, digests and signatures that members exchange and the contracts check.

Pure functions of bytes; no chain is asked. `TypedStruct` serves any flat message of the protocol.
Sources: EIP-712 (typed data), EIP-2 (low s), EIP-2098 (compact signatures), RFC 6979 (deterministic k).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import coincurve
from eth_utils.crypto import keccak

from folkmoot.contracts.types import Address, Commitment, Digest, Domain, RoundResult

__all__ = [
    "COMMITMENT",
    "ROUND_RESULT",
    "BadSignature",
    "TypedStruct",
    "UnencodableField",
    "address_of",
    "commitment_digest",
    "digest",
    "domain_separator",
    "from_compact",
    "hash_commitment",
    "hash_result",
    "recover",
    "result_digest",
    "sign",
    "struct_hash",
    "to_checksum",
    "to_compact",
]

SIGNATURE_BYTES = 65
CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
DOMAIN_NAME = "Folkmoot"
DOMAIN_VERSION = "1"

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")

Encoder = Callable[[object], bytes]


class UnencodableField(ValueError):
    """A value does not fit its EIP-712 type, or the type is not one that this module encodes."""


class BadSignature(ValueError):
    """A signature that no honest signer of this protocol makes: wrong length, high s, v not 27 or 28."""


@dataclass(frozen=True, slots=True)
class TypedStruct:
    """A flat EIP-712 struct: its name and its (field name, type) pairs in order.

    Types: uint8 to uint256, bytes32, bytes, string, address, and arrays `T[]` of uintN, bytes32, address.
    """

    name: str
    fields: tuple[tuple[str, str], ...]

    @property
    def type_string(self) -> str:
        """The text whose keccak256 is the type hash, e.g. "Vote(uint64 task,bytes32[] held)"."""
        return f"{self.name}({','.join(f'{kind} {name}' for name, kind in self.fields)})"


COMMITMENT = TypedStruct(
    "Commitment",
    (
        ("task", "uint64"),
        ("round", "uint64"),
        ("epoch", "uint32"),
        ("member", "uint16"),
        ("cid", "string"),
        ("keyHash", "bytes32"),
        ("examples", "uint64"),
        ("exponents", "bytes"),
    ),
)

ROUND_RESULT = TypedStruct(
    "RoundResult",
    (
        ("task", "uint64"),
        ("round", "uint64"),
        ("attempt", "uint32"),
        ("epoch", "uint32"),
        ("rule", "bytes32"),
        ("previous", "bytes32"),
        ("manifest", "bytes32"),
        ("model", "bytes32"),
        ("scoresRoot", "bytes32"),
        ("scoresDigest", "bytes32"),
        ("included", "uint256"),
        ("rejected", "uint256"),
    ),
)

_DOMAIN = TypedStruct(
    "EIP712Domain",
    (
        ("name", "string"),
        ("version", "string"),
        ("chainId", "uint256"),
        ("verifyingContract", "address"),
    ),
)


def _uint_encoder(bits: int) -> Encoder:
    limit = 1 << bits

    def encode(value: object) -> bytes:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
            raise UnencodableField(f"expected an integer of 0 to 2^{bits} - 1, found {value!r}")
        return value.to_bytes(32, "big")

    return encode


def _encode_bytes32(value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) != 32:
        raise UnencodableField(f"expected 32 bytes, found {value!r}")
    return value


def _encode_bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise UnencodableField(f"expected bytes, found {type(value).__name__}")
    return keccak(value)


def _encode_string(value: object) -> bytes:
    if not isinstance(value, str):
        raise UnencodableField(f"expected text, found {type(value).__name__}")
    try:
        return keccak(value.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise UnencodableField(f"expected text that UTF-8 can carry: {error.reason}") from error


def _encode_address(value: object) -> bytes:
    if not isinstance(value, str) or not _ADDRESS.fullmatch(value):
        raise UnencodableField(f"expected 0x and 40 hexadecimal digits, found {value!r}")
    return bytes.fromhex(value[2:]).rjust(32, b"\0")


def _array_encoder(item: Encoder) -> Encoder:
    def encode(value: object) -> bytes:
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise UnencodableField(f"expected a sequence, found {type(value).__name__}")
        return keccak(b"".join(item(part) for part in value))

    return encode


_UINTS: dict[str, Encoder] = {f"uint{bits}": _uint_encoder(bits) for bits in range(8, 257, 8)}
_WORDS: dict[str, Encoder] = {**_UINTS, "bytes32": _encode_bytes32, "address": _encode_address}
_ENCODERS: dict[str, Encoder] = {
    **_WORDS,
    **{f"{kind}[]": _array_encoder(encoder) for kind, encoder in _WORDS.items()},
    "bytes": _encode_bytes,
    "string": _encode_string,
}


@lru_cache(maxsize=64)
def _compile(struct: TypedStruct) -> tuple[bytes, tuple[Encoder, ...]]:
    for name in (struct.name, *(field for field, _ in struct.fields)):
        if not _IDENTIFIER.fullmatch(name):
            raise UnencodableField(f"{struct.name}: {name!r} is not a Solidity identifier")
    for field, kind in struct.fields:
        if kind not in _ENCODERS:
            raise UnencodableField(
                f"{struct.name}.{field}: type {kind!r} is not supported; use uintN, bytes32, "
                "bytes, string, address or an array of words"
            )
    return keccak(struct.type_string.encode()), tuple(_ENCODERS[kind] for _, kind in struct.fields)


def struct_hash(struct: TypedStruct, values: Sequence[object]) -> Digest:
    """hashStruct of EIP-712: keccak256(typeHash ‖ encodeData). `values` in the order of the fields.

    Raises UnencodableField, naming the field, when a value does not fit.
    """
    type_hash, encoders = _compile(struct)
    if len(values) != len(encoders):
        raise UnencodableField(f"{struct.name} has {len(encoders)} fields, found {len(values)} values")
    words = [type_hash]
    for position, (encode, value) in enumerate(zip(encoders, values, strict=True)):
        try:
            words.append(encode(value))
        except UnencodableField as error:
            raise UnencodableField(f"{struct.name}.{struct.fields[position][0]}: {error}") from None
    return Digest(keccak(b"".join(words)))


@lru_cache(maxsize=64)
def domain_separator(domain: Domain) -> Digest:
    """The hash that ties a signature to the name "Folkmoot", version "1", a chain and a RoundManager."""
    return struct_hash(_DOMAIN, (DOMAIN_NAME, DOMAIN_VERSION, domain.chain_id, domain.contract))


def digest(domain: Domain, hashed: bytes) -> Digest:
    """What is signed: keccak256(0x1901 ‖ domainSeparator ‖ struct hash)."""
    if len(hashed) != 32:
        raise UnencodableField(f"expected a struct hash of 32 bytes, found {len(hashed)}")
    return Digest(keccak(b"\x19\x01" + domain_separator(domain) + hashed))


def hash_commitment(commitment: Commitment) -> Digest:
    """Struct hash of a Commitment; equals RoundManager.hashCommitment."""
    c = commitment
    return struct_hash(
        COMMITMENT, (c.task, c.round, c.epoch, c.member, c.cid, c.key_hash, c.examples, c.exponents)
    )


def hash_result(result: RoundResult) -> Digest:
    """Struct hash of a RoundResult; equals RoundManager.hashResult and the next round's `previous`."""
    r = result
    return struct_hash(
        ROUND_RESULT,
        (
            r.task,
            r.round,
            r.attempt,
            r.epoch,
            r.rule,
            r.previous,
            r.manifest,
            r.model,
            r.scores_root,
            r.scores_digest,
            r.included,
            r.rejected,
        ),
    )


def commitment_digest(domain: Domain, commitment: Commitment) -> Digest:
    """What a member signs when it commits; equals RoundManager.digestCommitment."""
    return digest(domain, hash_commitment(commitment))


def result_digest(domain: Domain, result: RoundResult) -> Digest:
    """What a member signs when it attests; equals RoundManager.digestResult."""
    return digest(domain, hash_result(result))


def sign(message_digest: bytes, private_key: bytes) -> bytes:
    """65 bytes r ‖ s ‖ v with v 27 or 28, deterministic (RFC 6979), s in the lower half (EIP-2).

    Raises ValueError when the key is not 32 bytes of a valid secp256k1 scalar, or the digest not 32 bytes.
    """
    if len(message_digest) != 32 or len(private_key) != 32:
        raise ValueError("expected a digest and a private key of 32 bytes each")
    signature = coincurve.PrivateKey(private_key).sign_recoverable(message_digest, hasher=None)
    return bytes(signature[:64]) + bytes([27 + signature[64]])


def recover(message_digest: bytes, signature: bytes) -> Address:
    """The account that signed. One account, one digest: one acceptable (r, s, v) per nonce.

    Raises BadSignature on a wrong length, s in the upper half, v other than 27 or 28, or no such point.
    """
    if len(signature) != SIGNATURE_BYTES:
        raise BadSignature(f"a signature is {SIGNATURE_BYTES} bytes, found {len(signature)}")
    if signature[64] not in (27, 28):
        raise BadSignature(f"the signature's v is 27 or 28, found {signature[64]}")
    if int.from_bytes(signature[32:64], "big") > CURVE_ORDER // 2:
        raise BadSignature("the signature's s is in the upper half of the curve order (EIP-2)")
    if len(message_digest) != 32:
        raise BadSignature(f"a digest is 32 bytes, found {len(message_digest)}")
    recoverable = signature[:64] + bytes([signature[64] - 27])
    try:
        point = coincurve.PublicKey.from_signature_and_message(recoverable, message_digest, hasher=None)
    except Exception as error:
        raise BadSignature("the signature recovers to no public key") from error
    return _account(point.format(compressed=False))


def address_of(private_key: bytes) -> Address:
    """The account of a 32-byte private key."""
    return _account(coincurve.PrivateKey(private_key).public_key.format(compressed=False))


def _account(uncompressed: bytes) -> Address:
    return to_checksum(keccak(uncompressed[1:])[12:])


@lru_cache(maxsize=4096)
def to_checksum(account: bytes) -> Address:
    """EIP-55 text of a 20-byte account."""
    if len(account) != 20:
        raise UnencodableField(f"an account is 20 bytes, found {len(account)}")
    digits = account.hex()
    nibbles = keccak(digits.encode()).hex()
    return Address(
        "0x" + "".join(d.upper() if int(n, 16) >= 8 else d for d, n in zip(digits, nibbles, strict=False))
    )


def to_compact(signature: bytes) -> tuple[bytes, bytes]:
    """EIP-2098 (r, vs) of a 65-byte signature: the top bit of vs is v - 27. Raises BadSignature."""
    if len(signature) != SIGNATURE_BYTES or signature[64] not in (27, 28) or signature[32] & 0x80:
        raise BadSignature("only 65 bytes r, s, v with low s and v 27 or 28 have a compact form")
    return signature[:32], bytes([signature[32] | (signature[64] - 27) << 7]) + signature[33:64]


def from_compact(r: bytes, vs: bytes) -> bytes:
    """The 65-byte signature of EIP-2098 (r, vs). Raises BadSignature on wrong lengths."""
    if len(r) != 32 or len(vs) != 32:
        raise BadSignature(f"a compact signature is two words of 32 bytes, found {len(r)} and {len(vs)}")
    return r + bytes([vs[0] & 0x7F]) + vs[1:] + bytes([27 + (vs[0] >> 7)])
