"""`folkmoot task`: what is trained, decided by a quorum of owners."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from folkmoot.contracts.governance import CloseTask, OpenTask
from folkmoot.contracts.types import RoundState, Task, TaskStatus
from folkmoot.node.cli.access import home_option, json_option, open_home, passphrase_option, print_json
from folkmoot.node.cli.decisions import (
    approve_pending,
    describe,
    pending_fields,
    tell_receipt,
    terms_fields,
)

__all__ = ["task"]


@click.group(short_help="Open, approve, show, list, close tasks.")
def task() -> None:
    """What is trained. A task opens or closes when more than two thirds of the owners approved it.

    \b
    Example:
      folkmoot task open digits.toml --home hospital-a
      folkmoot task approve 8d01 --home hospital-b
      folkmoot task list --home hospital-a
    """


@task.command("list", short_help="Tasks and pending decisions on them.")
@home_option
@json_option
def list_tasks(home: Path, as_json: bool) -> None:
    """Every task with its progress, and decisions that lack approvals.

    \b
    Example:
      folkmoot task list --home hospital-a --json
    """
    opened = open_home(home)
    ledger = opened.ledger()
    tasks = [(known, ledger.round_state(known.id)) for known in ledger.tasks()]
    pending = [a for a in opened.governance().pending() if isinstance(a.decision, OpenTask | CloseTask)]
    if as_json:
        print_json(
            {
                "tasks": [_fields(known, state) for known, state in tasks],
                "pending": [pending_fields(action) for action in pending],
            }
        )
        return
    table = Table()
    for column in ("task", "status", "round", "commit, reveal (s)", "specification"):
        table.add_column(column, overflow="fold")
    for known, state in tasks:
        terms = known.terms
        table.add_row(
            str(known.id),
            _status(known, state),
            f"{state.round} of {terms.rounds}",
            f"{terms.commit_window}, {terms.reveal_window}",
            terms.specification.hex()[:16],
        )
    Console().print(table)
    for action in pending:
        count = f"{action.approved.bit_count()} of {action.needed}"
        click.echo(f"pending {action.id.hex()[:16]} ({count} approvals): {describe(action.decision)}")


@task.command(short_help="One task with every finalized round.")
@click.argument("number", type=click.IntRange(0))
@home_option
@json_option
def show(number: int, home: Path, as_json: bool) -> None:
    """Terms, open round and every finalized round of a task, each checked against the result chain.

    \b
    Example:
      folkmoot task show 1 --home hospital-a
    """
    ledger = open_home(home).ledger()
    known, state, results = ledger.task(number), ledger.round_state(number), ledger.results(number)
    rounds = [
        {
            "round": r.result.round,
            "attempt": r.result.attempt,
            "included": _seats(r.result.included),
            "rejected": _seats(r.result.rejected),
            "signers": _seats(r.signers),
            "scores": list(r.scores),
            "manifest": r.result.manifest.hex(),
            "model": r.result.model.hex(),
            "gas": r.gas_used,
            "block": r.block,
            "transaction": r.transaction,
        }
        for r in results
    ]
    if as_json:
        print_json({**_fields(known, state), "results": rounds})
        return
    for key, value in _fields(known, state).items():
        click.echo(f"{key.replace('_', ' '):14} {value}")
    table = Table()
    columns = ("round", "attempt", "included", "rejected", "signers", "gas", "block")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rounds:
        table.add_row(*(", ".join(map(str, v)) if isinstance(v := row[c], list) else str(v) for c in columns))
    Console().print(table)


@task.command("open", short_help="Propose a task from its file.")
@click.argument("file", type=click.Path(path_type=Path))
@home_option
@passphrase_option
@json_option
def open_task(file: Path, home: Path, passphrase_file: Path | None, as_json: bool) -> None:
    """Propose, as an owner, the task that FILE describes. This home's node then hands out specification
    and genesis model. An owner who has the same file and the same training code approves by opening it too:
    equal files give equal proposals.

    \b
    Example:
      folkmoot task open digits.toml --home hospital-a
    """
    from folkmoot.node.task_file import draft_task, hand_over

    opened = open_home(home)
    drafted = draft_task(file)
    governance = opened.governance(opened.owner_key(passphrase_file))
    hand_over(drafted, opened.home)
    tell_receipt(governance.propose_task(drafted.specification.terms), as_json=as_json)


@task.command(short_help="Approve a pending decision on a task.")
@click.argument("action")
@home_option
@passphrase_option
@json_option
def approve(action: str, home: Path, passphrase_file: Path | None, as_json: bool) -> None:
    """Approve, as an owner, the pending opening or closing whose id begins with ACTION.

    \b
    Example:
      folkmoot task approve 8d01 --home hospital-b
    """
    opened = open_home(home)
    governance = opened.governance(opened.owner_key(passphrase_file))
    tell_receipt(approve_pending(governance, action, (OpenTask, CloseTask)), as_json=as_json)


@task.command(short_help="Propose that a task is closed.")
@click.argument("number", type=click.IntRange(0))
@home_option
@passphrase_option
@json_option
def close(number: int, home: Path, passphrase_file: Path | None, as_json: bool) -> None:
    """Propose, as an owner, that a task takes no more rounds.

    \b
    Example:
      folkmoot task close 1 --home hospital-a
    """
    opened = open_home(home)
    governance = opened.governance(opened.owner_key(passphrase_file))
    tell_receipt(governance.close_task(number), as_json=as_json)


def _fields(known: Task, state: RoundState) -> dict[str, object]:
    return {
        "task": known.id,
        "status": _status(known, state),
        "round": state.round,
        "epoch": state.epoch,
        "opened_at": known.opened_at,
        **terms_fields(known.terms),
    }


def _status(known: Task, state: RoundState) -> str:
    if known.status is TaskStatus.OPEN and state.round == known.terms.rounds:
        return "complete"
    return known.status.name.lower()


def _seats(bitmap: int) -> list[int]:
    return [index for index in range(bitmap.bit_length()) if bitmap >> index & 1]
