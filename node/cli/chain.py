"""`folkmoot chain`: the embedded chain as a server, and the contracts put on any chain."""

from __future__ import annotations

import json
import secrets
import signal
import time
from pathlib import Path
from types import FrameType

import click

from folkmoot.node.cli.access import json_option, passphrase_option, print_json, read_card, read_passphrase
from folkmoot.node.errors import FileProblem, UsageProblem
from folkmoot.node.home import replace_file

__all__ = ["chain", "deploy"]

_LEAST_MEMBERS = 4
_ANVIL_LOOK_SECONDS = 2.0


@click.group(invoke_without_command=True, short_help="Serve the embedded chain; deploy the contracts.")
@click.option(
    "--path",
    type=click.Path(path_type=Path),
    default=Path("folkmoot-chain"),
    show_default=True,
    help="Directory of the chain's state; made if need be.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=8545, show_default=True, help="0 takes any free one."
)
@click.option("--anvil", is_flag=True, help="Serve Foundry's anvil instead (npm ci in contracts/).")
@json_option
@click.pass_context
def chain(context: click.Context, path: Path, host: str, port: int, anvil: bool, as_json: bool) -> None:
    """Serve an Ethereum chain of one process over JSON-RPC until it is stopped; its state survives.

    \b
    Example:
      folkmoot chain --path chain --port 8545
      folkmoot chain deploy --rpc http://127.0.0.1:8545 a/card.json b/card.json c/card.json d/card.json
    """
    if context.invoked_subcommand is not None:
        return
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)  # a shell starts background jobs with it ignored
    try:
        if anvil:
            _serve_anvil(path, host, port, as_json=as_json)
        else:
            _serve_embedded(path, host, port, as_json=as_json)
    except KeyboardInterrupt:
        click.echo("Chain stopped.", err=True)


def _serve_embedded(path: Path, host: str, port: int, *, as_json: bool) -> None:
    from folkmoot.contracts.chain import EmbeddedChain

    served = EmbeddedChain(path, host, port)
    _announce(served.url, served.chain_id, path, as_json=as_json)
    served.serve_forever()


def _serve_anvil(path: Path, host: str, port: int, *, as_json: bool) -> None:
    """Until interrupted, or until anvil no longer answers, which raises LedgerUnreachable."""
    from folkmoot.contracts.anvil import AnvilChain
    from folkmoot.contracts.rpc import Rpc

    with AnvilChain(path, host, port) as served:
        _announce(served.url, served.chain_id, path, as_json=as_json)
        rpc = Rpc(served.url)
        while True:
            rpc.call("eth_chainId")
            time.sleep(_ANVIL_LOOK_SECONDS)


def _announce(url: str, chain_id: int, path: Path, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"rpc": url, "chain_id": chain_id, "path": str(path)}))
    else:
        click.echo(f"Chain {chain_id} answers at {url}; its state is in {path}.")


def _stop(number: int, frame: FrameType | None) -> None:
    # A second one must not cut the stopping short.
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


@chain.command(short_help="Put the contracts on a chain, with the founding members in their seats.")
@click.argument("cards", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--auditor",
    "auditors",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Card of an auditor; repeat.",
)
@click.option("--rpc", default="http://127.0.0.1:8545", show_default=True, help="JSON-RPC of the chain.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("deployment.toml"),
    show_default=True,
    help="Where to write the contracts' addresses.",
)
@click.option(
    "--payer",
    type=click.Path(path_type=Path),
    help="Keystore (v3) of the account that pays for gas; a fresh one, where gas is free, if left out.",
)
@passphrase_option
@json_option
def deploy(
    cards: tuple[Path, ...],
    auditors: tuple[Path, ...],
    rpc: str,
    out: Path,
    payer: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Found a federation: deploy the contracts with the members of CARDS in seats 0, 1, 2, … and auditors
    after them. The payer keeps no power over the contracts. Give deployment.toml to every member.

    \b
    Example:
      folkmoot chain deploy --rpc http://127.0.0.1:8545 a/card.json b/card.json c/card.json d/card.json
    """
    from folkmoot.contracts.deploy import deploy as put_on_chain
    from folkmoot.contracts.rpc import Rpc
    from folkmoot.contracts.types import Role
    from folkmoot.node.identity import load_owner

    if len(cards) < _LEAST_MEMBERS:
        raise UsageProblem(
            f"{len(cards)} members are too few: name the cards of at least {_LEAST_MEMBERS}, "
            "the least that tolerate one liar"
        )
    if out.exists():
        raise FileProblem(f"{out} exists: name another file with --out, a deployment is never overwritten")
    roles = [Role.MEMBER] * len(cards) + [Role.AUDITOR] * len(auditors)
    paths = [*cards, *auditors]
    records = [read_card(p).record(i, role) for i, (p, role) in enumerate(zip(paths, roles, strict=True))]
    key = secrets.token_bytes(32) if payer is None else load_owner(payer, read_passphrase(passphrase_file))
    deployment = put_on_chain(Rpc(rpc), key, records)
    replace_file(out, deployment.to_toml().encode(), mode=0o644)
    if as_json:
        print_json(
            {
                "deployment": str(out),
                "chain_id": deployment.chain_id,
                "registry": deployment.registry,
                "board": deployment.board,
                "rounds": deployment.rounds,
                "block": deployment.block,
            }
        )
        return
    click.echo(
        f"Deployed to chain {deployment.chain_id} with {len(cards)} members, {len(auditors)} auditors."
    )
    click.echo(f"Give {out} to every member: it belongs into each home.")
