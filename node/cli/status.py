"""`folkmoot status`: what a running node wrote down about itself, and whether it still runs."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from folkmoot.node.cli.access import home_option, json_option, open_home, print_json
from folkmoot.node.errors import ExitCode, FileProblem
from folkmoot.node.home import FileLock, Home
from folkmoot.node.journal import lock_path

__all__ = ["status"]


@click.command(short_help="What this node knows.")
@home_option
@json_option
def status(home: Path, as_json: bool) -> int:
    """What this node knows: peers, round, phase, deadlines, last verdicts.

    Exit code 0 when the node runs, 1 when it does not; its last account is shown in both cases.

    \b
    Example:
      folkmoot status --home hospital-a
      folkmoot status --home hospital-a --json | jq .running
    """
    opened = open_home(home)
    pid = FileLock.holder(lock_path(opened.home.journal))
    account, age = _account(opened.home)
    if as_json:
        print_json(
            {"home": str(home), "running": pid is not None, "pid": pid, "age_seconds": age, "status": account}
        )
    else:
        _show(opened.config.node.name, pid, account, age)
    return ExitCode.DONE if pid is not None else ExitCode.FAILED


def _account(home: Home) -> tuple[Mapping[str, object] | None, float | None]:
    """The node's last account and its age in seconds."""
    try:
        account = json.loads(home.status.read_bytes())
        age = time.time() - home.status.stat().st_mtime
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError) as error:
        raise FileProblem(
            f"{home.status} cannot be read ({error}): delete it, the node writes another"
        ) from error
    if not isinstance(account, dict):
        raise FileProblem(f"{home.status} is no account of a node: delete it, the node writes another")
    return account, round(max(age, 0.0), 1)


def _show(name: str, pid: int | None, account: Mapping[str, object] | None, age: float | None) -> None:
    console = Console()
    console.print(f"{name}: " + ("not running" if pid is None else f"running as process {pid}"))
    if account is None:
        console.print("It has never written an account of itself; folkmoot run starts it.")
        return
    table = Table(title=f"written {age} s ago", title_justify="left", show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for key, value in _flat(account, ""):
        table.add_row(key, value)
    console.print(table)


def _flat(value: object, prefix: str) -> list[tuple[str, str]]:
    """Nested tables as rows of dotted names; lists of plain values on one line."""
    if isinstance(value, dict):
        rows = [_flat(inner, f"{prefix}.{key}" if prefix else str(key)) for key, inner in value.items()]
        return [row for group in rows for row in group] or [(prefix, "–")]
    if isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
        rows = [_flat(inner, f"{prefix}[{number}]") for number, inner in enumerate(value)]
        return [row for group in rows for row in group]
    if isinstance(value, list):
        return [(prefix, ", ".join(map(str, value)) or "–")]
    return [(prefix, str(value))]
