"""`folkmoot run` for a member that breaks the protocol: the same node, with a behaviour on its gossip.

python -m folkmoot.experiments.byzantine_node withhold run --home member-6
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import trio

from folkmoot.experiments.byzantine import BEHAVIOURS, ByzantineGossip
from folkmoot.node.cli.access import open_home, read_passphrase
from folkmoot.node.identity import load_identity
from folkmoot.node.ports import Gossip
from folkmoot.node.runtime import run_node
from folkmoot.node.signing import Signer


def main(behaviour: str, home: Path, passphrase_file: Path) -> None:
    """Run until SIGTERM. Raises KeyError for an unknown behaviour."""
    rewrite = BEHAVIOURS[behaviour]

    def wrap(gossip: Gossip, signer: Signer) -> Gossip:
        return ByzantineGossip(gossip, signer.domain, signer.signer_key, rewrite)

    async def run() -> None:
        opened = open_home(home)
        identity = load_identity(opened.home.keys, read_passphrase(passphrase_file))
        await run_node(opened.home, opened.config, identity, opened.ledger, wrap_gossip=wrap)

    trio.run(run)


if __name__ == "__main__":
    _, name, _, _, folder = sys.argv
    main(name, Path(folder), Path(os.environ["FOLKMOOT_PASSPHRASE_FILE"]))
