"""What commands share: the home, its configuration and passphrase, and the way to the ledger."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from folkmoot.contracts.deployment import BadDeployment, Deployment
from folkmoot.contracts.governance import Governance
from folkmoot.contracts.ledger import EthereumLedger
from folkmoot.contracts.types import MemberRecord, Membership, Role
from folkmoot.node.cli import Frame
from folkmoot.node.config import load
from folkmoot.node.errors import ConfigError, FileProblem, HomeMissing, UsageProblem
from folkmoot.node.home import Home
from folkmoot.node.identity import Card, CardInvalid, load_owner
from folkmoot.node.settings import Config

__all__ = [
    "Opened",
    "home_option",
    "json_option",
    "new_passphrase",
    "open_home",
    "passphrase_option",
    "print_json",
    "read_card",
    "read_deployment",
    "read_passphrase",
]

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
_MAX_TEXT: Final = 1 << 16

home_option: Final[_Decorator] = click.option(
    "--home",
    type=click.Path(path_type=Path),
    default=Path(),
    envvar="FOLKMOOT_HOME",
    show_envvar=True,
    help="The node's home; the working directory if left out.",
)
passphrase_option: Final[_Decorator] = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    envvar="FOLKMOOT_PASSPHRASE_FILE",
    show_envvar=True,
    help="File whose first line is the passphrase; asked for if left out.",
)
json_option: Final[_Decorator] = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@dataclass(frozen=True, slots=True)
class Opened:
    """A home with its configuration."""

    home: Home
    config: Config

    def deployment(self) -> Deployment:
        """Where the contracts are. Raises HomeMissing, FileProblem, ConfigError."""
        deployment = read_deployment(self.config.chain.deployment)
        expected = self.config.chain.chain_id
        if expected is not None and expected != deployment.chain_id:
            raise ConfigError(
                f"{self.home.config} wants chain {expected}, but {self.config.chain.deployment} names chain "
                f"{deployment.chain_id}: correct chain.chain_id or chain.deployment"
            )
        return deployment

    def ledger(self, signer_key: bytes | None = None) -> EthereumLedger:
        """The ledger; it only reads without a key."""
        chain = self.config.chain
        return EthereumLedger(
            chain.rpc,
            self.deployment(),
            signer_key,
            confirmations=chain.confirmations,
            timeout=chain.timeout_seconds,
        )

    def governance(self, owner_key: bytes | None = None) -> Governance:
        """The owners' decisions; read-only without a key."""
        chain = self.config.chain
        return Governance(chain.rpc, self.deployment(), owner_key, timeout=chain.timeout_seconds)

    def owner_key(self, passphrase_file: Path | None) -> bytes:
        """The cold account's key. Raises HomeMissing, WrongPassphrase, KeyFileCorrupt."""
        return load_owner(self.config.node.owner, read_passphrase(passphrase_file))

    def seat(self, membership: Membership) -> MemberRecord:
        """This node's record in the registry. Raises UsageProblem when it has none."""
        card = read_card(self.home.card)
        for record in membership.records:
            if record.role is not Role.NONE and record.owner == card.owner:
                return record
        raise UsageProblem(
            f"{card.owner} of {self.home.card} owns no seat in epoch {membership.epoch}: "
            "give card.json to a member, who proposes it with folkmoot member propose"
        )


def open_home(path: Path) -> Opened:
    """Read a home's configuration and tell the frame where its log is."""
    home = Home(path)
    config = load(home.config)
    context = click.get_current_context(silent=True)
    if context is not None:
        context.ensure_object(Frame).log = config.log.file
    return Opened(home, config)


def read_deployment(path: Path) -> Deployment:
    """Raises HomeMissing, FileProblem."""
    if not path.exists():
        raise HomeMissing(
            f"{path} does not exist: copy the federation's deployment.toml there, "
            "or make one with folkmoot chain deploy"
        )
    try:
        return Deployment.from_toml(_read_text(path))
    except BadDeployment as error:
        raise FileProblem(f"{path}: {error}; copy the federation's deployment.toml again") from error


def read_card(path: Path) -> Card:
    """Raises FileProblem, CardInvalid."""
    try:
        return Card.from_json(_read_text(path))
    except CardInvalid as error:
        raise CardInvalid(f"{path}: {error}") from error


def read_passphrase(file: Path | None) -> str:
    """The first line of the file, or what the user types. Raises FileProblem, UsageProblem."""
    if file is not None:
        lines = _read_text(file).splitlines()
        if not lines or not lines[0]:
            raise FileProblem(f"{file} is empty: its first line is the passphrase")
        return lines[0]
    if not sys.stdin.isatty():
        raise UsageProblem("no passphrase: use --passphrase-file or FOLKMOOT_PASSPHRASE_FILE, or a terminal")
    return str(click.prompt("Passphrase", hide_input=True, err=True))


def new_passphrase(file: Path | None) -> str:
    """As `read_passphrase`, but typed twice."""
    if file is not None or not sys.stdin.isatty():
        return read_passphrase(file)
    return str(click.prompt("New passphrase", hide_input=True, confirmation_prompt=True, err=True))


def print_json(result: Mapping[str, object]) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(result, indent=2))


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_TEXT + 1)
        if len(content) > _MAX_TEXT:
            raise FileProblem(f"{path} is larger than {_MAX_TEXT} bytes: is it the right file?")
        return content.decode()
    except OSError as error:
        raise FileProblem(f"{path} cannot be read ({error.strerror}): name another file") from error
    except UnicodeDecodeError as error:
        raise FileProblem(f"{path} is not text: name another file") from error
