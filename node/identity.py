"""Who a node is: its libp2p key, hot signer, cold owner and box key; sealed at rest, public as a card.

Secrets live in `Identity` and in files that a passphrase opens, and nowhere else: not in a repr, a log or
a command line.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

import base58
from coincurve import PrivateKey
from eth_account import Account
from eth_utils.address import to_checksum_address
from nacl import bindings
from nacl.exceptions import CryptoError

from folkmoot.contracts.types import Address, MemberRecord, Role
from folkmoot.node.errors import ExitCode, HomeExists, HomeMissing, NodeError
from folkmoot.node.home import replace_file

__all__ = [
    "Card",
    "CardInvalid",
    "Identity",
    "KeyCost",
    "KeyFileCorrupt",
    "WrongPassphrase",
    "create_identity",
    "create_signer",
    "load_identity",
    "load_owner",
    "load_signer",
    "peer_id_of_seed",
    "public_record",
    "verify_box_key",
]

SEALED: Final = "identity.json"
SIGNER: Final = "signer.json"
OWNER: Final = "owner.json"
_FORMAT: Final = "folkmoot-identity-1"
_CARD_FORMAT: Final = "folkmoot-card-1"
_BOX_KEY_CONTEXT: Final = b"folkmoot-box-key:"
"""Keeps the signature of a box key apart from those that Noise and gossip make with the same key."""
_PEER_ID_PREFIX: Final = bytes.fromhex("002408011220")
"""Identity multihash of 36 bytes; protobuf PublicKey {Ed25519, 32 bytes} (libp2p peer-ids spec)."""
_MAX_MEMORY: Final = 1 << 30
_MAX_ROUNDS: Final = 10_000_000
_MAX_CARD: Final = 4096
_MAX_FILE: Final = 1 << 16


class WrongPassphrase(NodeError):
    """The passphrase does not open the key file."""

    exit_code = ExitCode.USAGE


class KeyFileCorrupt(NodeError):
    """A key file is not what `folkmoot init` wrote."""


class CardInvalid(NodeError):
    """A member's public card is malformed or not signed by its own libp2p key."""

    exit_code = ExitCode.USAGE


class KeyCost(Enum):
    """What one guess of the passphrase costs: Argon2id passes, Argon2id bytes, scrypt's N (r = 8, p = 1)."""

    INTERACTIVE = (3, 1 << 27, 1 << 18)
    """About a second and 256 MiB to open everything."""
    LIGHT = (1, 1 << 13, 1 << 4)
    """No protection worth the name: for keys that are thrown away."""

    @property
    def passes(self) -> int:
        return self.value[0]

    @property
    def memory(self) -> int:
        return self.value[1]

    @property
    def scrypt_n(self) -> int:
        return self.value[2]


@dataclass(frozen=True, slots=True)
class Identity:
    """The secrets that a running node holds, and what follows from them."""

    libp2p_seed: bytes = field(repr=False)
    """Ed25519 seed, 32 bytes."""
    signer_key: bytes = field(repr=False)
    """secp256k1 private key, 32 bytes: signs messages and results."""
    box_private_key: bytes = field(repr=False)
    """X25519 private key, 32 bytes: opens keyrings."""
    owner: Address
    """The cold account; its key stays in `owner.json`, which may live elsewhere."""

    @property
    def peer_id(self) -> bytes:
        return peer_id_of_seed(self.libp2p_seed)

    @property
    def signer(self) -> Address:
        return _address_of(self.signer_key)

    @property
    def box_key(self) -> bytes:
        """X25519 public key, 32 bytes."""
        return bindings.crypto_scalarmult_base(self.box_private_key)

    @property
    def card(self) -> Card:
        signing_key = bindings.crypto_sign_seed_keypair(self.libp2p_seed)[1]
        signed = bindings.crypto_sign(_BOX_KEY_CONTEXT + self.box_key, signing_key)
        return Card(self.owner, self.signer, self.peer_id, self.box_key, signed[:64])


@dataclass(frozen=True, slots=True)
class Card:
    """The public half of an identity, as members exchange it to propose one another."""

    owner: Address
    signer: Address
    peer_id: bytes
    box_key: bytes
    box_key_signature: bytes

    def record(self, index: int, role: Role = Role.MEMBER) -> MemberRecord:
        """The registry's record of this card at a seat."""
        return MemberRecord(
            index, role, self.owner, self.signer, self.peer_id, self.box_key, self.box_key_signature
        )

    def to_json(self) -> str:
        fields = {
            "format": _CARD_FORMAT,
            "owner": self.owner,
            "signer": self.signer,
            "peer_id": base58.b58encode(self.peer_id).decode(),
            "box_key": self.box_key.hex(),
            "box_key_signature": self.box_key_signature.hex(),
        }
        return json.dumps(fields, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Card:
        """Read and verify a card. Raises CardInvalid."""
        try:
            fields = json.loads(text if len(text) <= _MAX_CARD else "")
            if set(fields) != {"format", "owner", "signer", "peer_id", "box_key", "box_key_signature"}:
                raise ValueError(f"its fields are {sorted(fields)}")
            if not all(isinstance(value, str) for value in fields.values()):
                raise TypeError("every field is a text")
            if fields["format"] != _CARD_FORMAT:
                raise ValueError(f"its format is {fields['format']!r}, expected {_CARD_FORMAT!r}")
            card = cls(
                owner=_address(fields["owner"]),
                signer=_address(fields["signer"]),
                peer_id=base58.b58decode(fields["peer_id"]),
                box_key=bytes.fromhex(fields["box_key"]),
                box_key_signature=bytes.fromhex(fields["box_key_signature"]),
            )
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CardInvalid(f"not a member's card: {error}; ask the member for its card.json") from error
        verify_box_key(card)
        return card


def verify_box_key(record: Card | MemberRecord) -> None:
    """Check that the libp2p key of a record signed its box key.

    The signature is Ed25519 over the ASCII text "folkmoot-box-key:" and the 32 bytes of the box key.
    Raises CardInvalid.
    """
    prefix, public = record.peer_id[:6], record.peer_id[6:]
    if prefix != _PEER_ID_PREFIX or len(public) != 32 or len(record.box_key) != 32:
        raise CardInvalid(
            f"peer id {record.peer_id.hex()} is not that of an Ed25519 key, or its box key has not 32 bytes: "
            "ask the member for its card.json"
        )
    try:
        signed = bindings.crypto_sign_open(
            record.box_key_signature + _BOX_KEY_CONTEXT + record.box_key, public
        )
    except (CryptoError, ValueError):
        signed = b""
    if len(record.box_key_signature) != 64 or not signed:
        raise CardInvalid(
            f"the box key of peer {base58.b58encode(record.peer_id).decode()} is not signed by that peer: "
            "ask the member for its card.json over a channel that you trust"
        )


def public_record(identity: Identity, index: int = 0, role: Role = Role.MEMBER) -> MemberRecord:
    """What the registry says of this identity at a seat."""
    return identity.card.record(index, role)


def peer_id_of_seed(seed: bytes) -> bytes:
    """The libp2p peer id (multihash bytes) of a 32-byte Ed25519 seed."""
    return _PEER_ID_PREFIX + bindings.crypto_sign_seed_keypair(seed)[0]


def create_identity(folder: Path, passphrase: str, cost: KeyCost = KeyCost.INTERACTIVE) -> Identity:
    """Make fresh keys and write `identity.json`, `signer.json` and `owner.json` (0600) into a new folder.

    `owner.json` may be moved off the machine at once; only membership decisions need it. Raises HomeExists
    when any of the files is there already.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in (SEALED, SIGNER, OWNER):
        if (folder / name).exists():
            raise HomeExists(f"{folder / name} exists: use another folder, keys are never overwritten")
    owner_key = _fresh_account()
    identity = Identity(
        libp2p_seed=secrets.token_bytes(32),
        signer_key=_fresh_account(),
        box_private_key=secrets.token_bytes(32),
        owner=_address_of(owner_key),
    )
    _write_account(folder / OWNER, owner_key, passphrase, cost)
    _write_account(folder / SIGNER, identity.signer_key, passphrase, cost)
    # Last: a folder with this file is complete.
    replace_file(folder / SEALED, _seal(identity, passphrase, cost))
    return identity


def create_signer(target: Path, passphrase: str, like: Path) -> bytes:
    """Write a fresh signing account as a keystore file and return its private key.

    A guess of its passphrase costs what it costs at the keystore `like`, which the passphrase must open:
    one node, one passphrase. Raises HomeMissing, WrongPassphrase, KeyFileCorrupt.
    """
    _read_account(like, passphrase)
    light = 1 < _parameter(_read_json(like), "n") <= KeyCost.LIGHT.scrypt_n
    key = _fresh_account()
    _write_account(target, key, passphrase, KeyCost.LIGHT if light else KeyCost.INTERACTIVE)
    return key


def load_signer(path: Path, passphrase: str) -> bytes:
    """The private key of a keystore file. Raises HomeMissing, WrongPassphrase, KeyFileCorrupt."""
    return _read_account(path, passphrase)


def load_identity(folder: Path, passphrase: str) -> Identity:
    """Open the keys of a running node; the owner's file is not needed.

    Raises HomeMissing, WrongPassphrase, KeyFileCorrupt.
    """
    secret = _unseal(folder / SEALED, passphrase)
    signer_key = _read_account(folder / SIGNER, passphrase)
    owner = _address(secret[64:].hex())
    return Identity(secret[:32], signer_key, secret[32:64], owner)


def load_owner(path: Path, passphrase: str) -> bytes:
    """The owner's private key, from `owner.json` or from where it was moved to.

    Raises HomeMissing, WrongPassphrase, KeyFileCorrupt.
    """
    return _read_account(path / OWNER if path.is_dir() else path, passphrase)


def _fresh_account() -> bytes:
    return bytes(PrivateKey().secret)


def _address_of(key: bytes) -> Address:
    return Address(Account.from_key(key).address)


def _address(text: str) -> Address:
    return Address(to_checksum_address(text))


def _derive_key(passphrase: str, salt: bytes, passes: int, memory: int) -> bytes:
    return bindings.crypto_pwhash_alg(
        bindings.crypto_secretbox_KEYBYTES,
        passphrase.encode(),
        salt,
        passes,
        memory,
        bindings.crypto_pwhash_ALG_ARGON2ID13,
    )


def _seal(identity: Identity, passphrase: str, cost: KeyCost) -> bytes:
    salt = secrets.token_bytes(bindings.crypto_pwhash_SALTBYTES)
    nonce = secrets.token_bytes(bindings.crypto_secretbox_NONCEBYTES)
    secret = identity.libp2p_seed + identity.box_private_key + bytes.fromhex(identity.owner[2:])
    key = _derive_key(passphrase, salt, cost.passes, cost.memory)
    fields = {
        "format": _FORMAT,
        "kdf": "argon2id",
        "passes": cost.passes,
        "memory": cost.memory,
        "salt": salt.hex(),
        "nonce": nonce.hex(),
        "box": bindings.crypto_secretbox(secret, nonce, key).hex(),
    }
    return json.dumps(fields, indent=2).encode() + b"\n"


def _unseal(path: Path, passphrase: str) -> bytes:
    """Seed (32), box key (32) and owner address (20)."""
    fields = _read_json(path)
    try:
        if fields["format"] != _FORMAT or fields["kdf"] != "argon2id":
            raise ValueError(f"format {fields['format']!r}, kdf {fields['kdf']!r}")
        passes, memory = fields["passes"], fields["memory"]
        if not (isinstance(passes, int) and isinstance(memory, int)):
            raise ValueError("passes and memory are whole numbers")
        if not (1 <= passes <= 16 and 1 << 13 <= memory <= _MAX_MEMORY):
            raise ValueError(f"{passes} passes over {memory} bytes")
        salt, nonce, box = (bytes.fromhex(str(fields[name])) for name in ("salt", "nonce", "box"))
        if (len(salt), len(nonce), len(box)) != (16, 24, 84 + 16):
            raise ValueError(f"lengths {len(salt)}, {len(nonce)}, {len(box)}")
    except (KeyError, ValueError) as error:
        raise _corrupt(path, str(error)) from error
    try:
        return bindings.crypto_secretbox_open(box, nonce, _derive_key(passphrase, salt, passes, memory))
    except CryptoError as error:
        raise _wrong(path) from error


def _write_account(path: Path, key: bytes, passphrase: str, cost: KeyCost) -> None:
    keystore = Account.encrypt(key, passphrase, kdf="scrypt", iterations=cost.scrypt_n)
    replace_file(path, json.dumps(keystore, indent=2).encode() + b"\n")


def _read_account(path: Path, passphrase: str) -> bytes:
    keystore = _read_json(path)
    try:
        _check_cost(keystore)
        key = bytes(Account.decrypt(keystore, passphrase))
        expected = str(keystore["address"]).removeprefix("0x").lower()
    except (ValueError, KeyError, TypeError, AttributeError, MemoryError) as error:
        if "MAC mismatch" in str(error):
            raise _wrong(path) from error
        raise _corrupt(path, str(error)) from error
    if _address_of(key)[2:].lower() != expected:
        raise _corrupt(path, f"it holds the key of {_address_of(key)} but names {expected}")
    return key


def _check_cost(keystore: Mapping[str, object]) -> None:
    """Refuse, before any work, a keystore whose parameters would take all memory or hours."""
    n, r, rounds = (_parameter(keystore, name) for name in ("n", "r", "c"))
    if 128 * n * r > _MAX_MEMORY or rounds > _MAX_ROUNDS:
        raise ValueError(f"scrypt n = {n}, r = {r}, or {rounds} rounds of pbkdf2 are beyond reason")


def _parameter(keystore: Mapping[str, object], name: str) -> int:
    """A number of the key derivation; 1 when the derivation has none of that name."""
    crypto = keystore["crypto"]
    return int(crypto["kdfparams"].get(name, 1)) if isinstance(crypto, dict) else 1


def _read_json(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as stream:
            text = stream.read(_MAX_FILE + 1)
    except FileNotFoundError:
        raise HomeMissing(
            f"key file {path} is missing: name the home that `folkmoot init` made, or put the file back"
        ) from None
    try:
        content = json.loads(text) if len(text) <= _MAX_FILE else None
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, str(error)) from error
    if not isinstance(content, dict):
        raise _corrupt(path, "it is no JSON object")
    return content


def _wrong(path: Path) -> WrongPassphrase:
    return WrongPassphrase(
        f"the passphrase does not open {path}: try again, or restore the file if it changed"
    )


def _corrupt(path: Path, what: str) -> KeyFileCorrupt:
    return KeyFileCorrupt(f"key file {path} is damaged ({what}): restore it from a copy")
