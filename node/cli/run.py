"""`folkmoot run`: the node."""

from __future__ import annotations

import logging
from pathlib import Path

import click
import trio

from folkmoot.node.cli.access import home_option, open_home, passphrase_option, read_passphrase
from folkmoot.node.errors import ExitCode
from folkmoot.node.identity import load_identity
from folkmoot.node.runtime import run_node
from folkmoot.node.settings import LogSettings

__all__ = ["run"]


@click.command(short_help="Run this node.")
@home_option
@passphrase_option
def run(home: Path, passphrase_file: Path | None) -> int:
    """Run this node until it is stopped (SIGTERM or Ctrl-C): it follows the chain, joins every open task at
    its present round, trains, votes, attests, and recovers by itself after a crash.

    \b
    Example:
      folkmoot run --home hospital-a --passphrase-file /run/secrets/folkmoot
    """
    opened = open_home(home)
    _log_to(opened.config.log)
    identity = load_identity(opened.home.keys, read_passphrase(passphrase_file))
    trio.run(run_node, opened.home, opened.config, identity, opened.ledger)
    return ExitCode.DONE


def _log_to(settings: LogSettings) -> None:
    """Everything into the log file; on stderr what the node itself has to say, and every warning."""
    shown = logging.StreamHandler()
    shown.addFilter(lambda record: record.name == "folkmoot" or record.levelno >= logging.WARNING)
    shown.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.getLogger("folkmoot").addHandler(shown)
    logging.basicConfig(
        filename=settings.file,
        level=settings.level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        force=True,
    )
