"""`folkmoot init`: a node's home, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import base58
import click

from folkmoot.node.cli.access import json_option, new_passphrase, passphrase_option, print_json
from folkmoot.node.config import render
from folkmoot.node.errors import FileProblem, HomeExists
from folkmoot.node.home import Home, replace_file
from folkmoot.node.identity import Identity, KeyCost, create_identity

__all__ = ["init", "make_home"]


@click.command(short_help="Make a node's home: keys, card, configuration.")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--name", help="The node's label; the directory's name if left out.")
@click.option(
    "--key-cost",
    type=click.Choice([cost.name.lower() for cost in KeyCost]),
    default="interactive",
    show_default=True,
    help="What a guess of the passphrase costs; light only for keys that are thrown away.",
)
@passphrase_option
@json_option
def init(
    directory: Path, name: str | None, key_cost: str, passphrase_file: Path | None, as_json: bool
) -> None:
    """Make a node's home: fresh keys, sealed with a passphrase; card.json for the other members; and
    config.toml, which explains every option.

    \b
    Example:
      folkmoot init hospital-a
      folkmoot init hospital-a --passphrase-file ~/.folkmoot-passphrase --json
    """
    refuse_existing(directory)
    identity = make_home(
        directory,
        new_passphrase(passphrase_file),
        KeyCost[key_cost.upper()],
        name or directory.resolve().name,
    )
    home = Home(directory)
    peer_id = base58.b58encode(identity.peer_id).decode()
    if as_json:
        print_json(
            {
                "home": str(directory),
                "card": str(home.card),
                "config": str(home.config),
                "owner": identity.owner,
                "signer": identity.signer,
                "peer_id": peer_id,
            }
        )
        return
    click.echo(f"Made {directory}.")
    click.echo(f"  peer id  {peer_id}\n  signer   {identity.signer}\n  owner    {identity.owner}")
    click.echo(f"Give {home.card} to the members: it is public.")
    click.echo(f"Move {home.keys / 'owner.json'} to a safe place and set node.owner; only decisions need it.")
    click.echo(f"Set chain and trainer in {home.config}, then: folkmoot run --home {directory}")


def refuse_existing(directory: Path) -> None:
    """Raises HomeExists unless the directory is free or empty."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise HomeExists(f"{directory} exists and is no directory: name another one")
    if directory.is_dir() and any(directory.iterdir()):
        raise HomeExists(f"{directory} exists and is not empty: name another, homes are never overwritten")


def make_home(directory: Path, passphrase: str, cost: KeyCost, name: str) -> Identity:
    """Build a home beside its place and move it there in one step.

    Raises HomeExists, FileProblem; nothing is left behind then.
    """
    refuse_existing(directory)
    place = directory.absolute()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        build = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    except OSError as error:
        raise FileProblem(
            f"{place.parent} cannot hold a home ({error.strerror}): name another place"
        ) from error
    try:
        home = Home(build)
        identity = create_identity(home.keys, passphrase, cost)
        replace_file(home.card, identity.card.to_json().encode(), mode=0o644)
        replace_file(home.config, render({"node": {"name": name}}).encode(), mode=0o644)
        os.rename(build, place)
    except OSError as error:
        shutil.rmtree(build, ignore_errors=True)
        raise FileProblem(f"{place} cannot be made ({error.strerror}): name another place") from error
    except BaseException:
        shutil.rmtree(build, ignore_errors=True)
        raise
    return identity
