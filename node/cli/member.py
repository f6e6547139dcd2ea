"""`folkmoot member`: who takes part, decided by a quorum of owners."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from folkmoot.contracts.governance import MemberChange, Succession, consent_to_rotation
from folkmoot.contracts.types import Address, MemberRecord, Membership, Role
from folkmoot.node.cli.access import (
    Opened,
    home_option,
    json_option,
    open_home,
    passphrase_option,
    print_json,
    read_card,
    read_passphrase,
)
from folkmoot.node.cli.decisions import (
    approve_pending,
    describe,
    pending_fields,
    record_fields,
    tell_receipt,
)
from folkmoot.node.errors import UsageProblem
from folkmoot.node.home import FileLock, replace_file
from folkmoot.node.identity import SIGNER, Identity, create_signer, load_identity, load_owner, load_signer
from folkmoot.node.journal import JournalCorrupt, lock_path, open_journal

__all__ = ["member"]

_NOBODY = Address("0x" + "00" * 20)


@click.group(short_help="Propose, vote, list, rotate, remove members.")
def member() -> None:
    """Who takes part. A change takes effect when more than two thirds of the owners approved it.

    \b
    Example:
      folkmoot member list --home hospital-a
      folkmoot member propose new/card.json --home hospital-a
      folkmoot member vote 3f2a --home hospital-b
    """


@member.command("list", short_help="Seats of this epoch and pending changes.")
@home_option
@json_option
def list_members(home: Path, as_json: bool) -> None:
    """Seats of the present epoch, and changes that lack approvals.

    \b
    Example:
      folkmoot member list --home hospital-a --json
    """
    opened = open_home(home)
    ledger = opened.ledger()
    membership, addresses = ledger.membership(), ledger.addresses()
    pending = [
        action
        for action in opened.governance().pending()
        if isinstance(action.decision, MemberChange | Succession)
    ]
    seats = [r for r in membership.records if r.role is not Role.NONE]
    if as_json:
        members = [{**record_fields(r), "addresses": list(addresses.get(r.index, ()))} for r in seats]
        print_json(
            {
                "epoch": membership.epoch,
                "quorum": membership.quorum,
                "members": members,
                "pending": [pending_fields(action) for action in pending],
            }
        )
        return
    table = Table(title=f"epoch {membership.epoch}, quorum {membership.quorum}", title_justify="left")
    for column in ("seat", "role", "signer", "owner", "listens at"):
        table.add_column(column, overflow="fold")
    for record in seats:
        listens = "\n".join(addresses.get(record.index, ())) or "–"
        table.add_row(str(record.index), record.role.name.lower(), record.signer, record.owner, listens)
    Console().print(table)
    for action in pending:
        count = f"{action.approved.bit_count()} of {action.needed}"
        click.echo(f"pending {action.id.hex()[:16]} ({count} approvals): {describe(action.decision)}")


@member.command(short_help="Propose that a card takes a seat.")
@click.argument("card", type=click.Path(path_type=Path))
@click.option("--seat", type=click.IntRange(0, 255), help="The first empty seat, or a new one, if left out.")
@click.option(
    "--role",
    type=click.Choice(["member", "auditor"]),
    default="member",
    show_default=True,
    help="What it may do.",
)
@home_option
@passphrase_option
@json_option
def propose(
    card: Path, seat: int | None, role: str, home: Path, passphrase_file: Path | None, as_json: bool
) -> None:
    """Propose, as an owner, that the member of CARD takes a seat. An auditor reads and never signs.

    \b
    Example:
      folkmoot member propose new/card.json --home hospital-a
    """
    opened = open_home(home)
    newcomer = read_card(card)
    index = _free_seat(opened.ledger().membership()) if seat is None else seat
    governance = opened.governance(opened.owner_key(passphrase_file))
    tell_receipt(governance.propose_member(newcomer.record(index, Role[role.upper()])), as_json=as_json)


def _free_seat(membership: Membership) -> int:
    empty = [record.index for record in membership.records if record.role is Role.NONE]
    return empty[0] if empty else len(membership.records)


@member.command(short_help="Approve a pending change of members.")
@click.argument("action")
@home_option
@passphrase_option
@json_option
def vote(action: str, home: Path, passphrase_file: Path | None, as_json: bool) -> None:
    """Approve, as an owner, the pending change whose id begins with ACTION (see folkmoot member list).

    \b
    Example:
      folkmoot member vote 3f2a --home hospital-b
    """
    opened = open_home(home)
    governance = opened.governance(opened.owner_key(passphrase_file))
    tell_receipt(approve_pending(governance, action, (MemberChange, Succession)), as_json=as_json)


@member.command(short_help="Propose that a seat is emptied.")
@click.argument("seat", type=click.IntRange(0, 255))
@home_option
@passphrase_option
@json_option
def remove(seat: int, home: Path, passphrase_file: Path | None, as_json: bool) -> None:
    """Propose, as an owner, that a seat is emptied. What was sealed before stays open to its member;
    nothing that comes later is.

    \b
    Example:
      folkmoot member remove 5 --home hospital-a
    """
    opened = open_home(home)
    governance = opened.governance(opened.owner_key(passphrase_file))
    nobody = MemberRecord(seat, Role.NONE, _NOBODY, _NOBODY, b"", bytes(32), b"")
    tell_receipt(governance.propose_member(nobody), as_json=as_json)


@member.command(short_help="Replace this node's signing key.")
@home_option
@passphrase_option
@json_option
def rotate(home: Path, passphrase_file: Path | None, as_json: bool) -> None:
    """Replace this node's signing key by a fresh one; the owner alone decides. Stop the node first.

    A rotation that was cut off is finished when it is run again. A damaged signing journal is set aside:
    what the old key signed binds the new one to nothing.

    \b
    Example:
      folkmoot member rotate --home hospital-a
    """
    opened = open_home(home)
    passphrase = read_passphrase(passphrase_file)
    owner_key = load_owner(opened.config.node.owner, passphrase)
    record = opened.seat(opened.ledger().membership())
    if record.role is not Role.MEMBER:
        raise UsageProblem(f"seat {record.index} is an auditor's: it signs nothing, so nothing is rotated")
    damage = _damage(opened)
    with FileLock(lock_path(opened.home.journal)):
        identity, transaction = _rotate(opened, passphrase, owner_key, record)
        if damage is not None:
            _set_aside(opened, record.signer)
    if as_json:
        print_json({"seat": record.index, "signer": identity.signer, "transaction": transaction})
    else:
        click.echo(f"Seat {record.index} signs with {identity.signer} from the next round on.")


def _damage(opened: Opened) -> JournalCorrupt | None:
    """What is wrong with the signing journal, if anything. Raises HomeBusy while the node runs."""
    try:
        open_journal(opened.home).close()
    except JournalCorrupt as error:
        return error
    return None


def _set_aside(opened: Opened, signer: Address) -> None:
    """Make way for a fresh journal, once the key whose signatures the old one guarded signs no more."""
    for part in opened.home.path.glob(f"{opened.home.journal.name}*"):
        if part != lock_path(opened.home.journal) and ".damaged" not in part.name:
            os.replace(part, part.with_name(f"{part.name}.damaged-{signer}"))
    opened.home.journal_birth.unlink(missing_ok=True)
    click.echo(f"The damaged signing journal of {signer} is set aside.", err=True)


def _rotate(opened: Opened, passphrase: str, owner_key: bytes, record: MemberRecord) -> tuple[Identity, str]:
    """Make the next key, put it on the chain, then let it take the old one's place."""
    keys = opened.home.keys
    following = keys / f"next-{SIGNER}"
    if following.exists():
        signer_key = load_signer(following, passphrase)
    else:
        signer_key = create_signer(following, passphrase, keys / SIGNER)
    identity = replace(load_identity(keys, passphrase), signer_key=signer_key)
    transaction = ""
    if record.signer != identity.signer:
        governance = opened.governance(owner_key)
        since = governance.changed_at(record.index)
        consent = consent_to_rotation(governance.registry_domain, since, record.index, signer_key)
        transaction = governance.rotate(replace(record, signer=identity.signer), consent)
    os.replace(following, keys / SIGNER)
    replace_file(opened.home.card, identity.card.to_json().encode(), mode=0o644)
    return identity, transaction


@member.command(short_help="Publish where this node listens.")
@click.argument("addresses", nargs=-1, required=True)
@home_option
@passphrase_option
@json_option
def announce(addresses: tuple[str, ...], home: Path, passphrase_file: Path | None, as_json: bool) -> None:
    """Publish where this node's libp2p host listens, at most 8 multiaddresses. A running node does so itself.

    \b
    Example:
      folkmoot member announce /ip4/192.0.2.7/tcp/4001 --home hospital-a
    """
    opened = open_home(home)
    record = opened.seat(opened.ledger().membership())
    passphrase = read_passphrase(passphrase_file)
    if record.role is Role.MEMBER:
        key = load_identity(opened.home.keys, passphrase).signer_key
    else:
        key = load_owner(opened.config.node.owner, passphrase)
    transaction = opened.ledger(key).announce(record.index, addresses)
    if as_json:
        print_json({"seat": record.index, "addresses": list(addresses), "transaction": transaction})
    else:
        click.echo(f"Seat {record.index} listens at {', '.join(addresses)}.")
