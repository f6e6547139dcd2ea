"""The command line: one command, its sub-commands loaded when they are called.

Nothing heavier than click may be imported here; `folkmoot --help` answers at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from folkmoot.node.cli.failure import report
from folkmoot.node.errors import ExitCode, UsageProblem

__all__ = ["Frame", "LazyGroup", "cli", "execute", "main"]


@dataclass(frozen=True, slots=True)
class Lazy:
    """Where a sub-command lives, and its line in the list."""

    target: str
    """As "package.module:command"."""
    summary: str
    extra: str = ""
    """The extra of the distribution that it needs beside the rest."""


@dataclass(slots=True)
class Frame:
    """What a failing command needs to tell the user: filled while the command runs."""

    debug: bool = False
    log: Path | None = None
    """The home's log file, once the home is known."""


class LazyGroup(click.Group):
    """A group whose sub-commands are imported when they are used, not when they are listed."""

    def __init__(self, *arguments: Any, lazy: Mapping[str, Lazy], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.lazy = lazy

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.lazy)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self.lazy:
            return None
        module, _, attribute = self.lazy[name].target.partition(":")
        try:
            command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if not self.lazy[name].extra or (error.name or "").startswith("folkmoot"):
                raise
            raise UsageProblem(
                f"{error.name} is not installed; run scripts/setup {self.lazy[name].extra}, "
                f"or pip install 'folkmoot[{self.lazy[name].extra}]'"
            ) from None
        if not isinstance(command, click.Command):
            raise TypeError(f"{self.lazy[name].target} is no command")
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.summary) for name, lazy in self.lazy.items()])


_COMMANDS: Final = {
    "demo": Lazy("folkmoot.node.cli.demo:demo", "A whole federation on this machine."),
    "init": Lazy("folkmoot.node.cli.init:init", "Make a node's home: keys, card, configuration."),
    "chain": Lazy("folkmoot.node.cli.chain:chain", "Serve the embedded chain; deploy the contracts."),
    "member": Lazy("folkmoot.node.cli.member:member", "Propose, vote, list, rotate, remove members."),
    "task": Lazy("folkmoot.node.cli.task:task", "Open, approve, show, list, close tasks."),
    "run": Lazy("folkmoot.node.cli.run:run", "Run this node."),
    "status": Lazy("folkmoot.node.cli.status:status", "What this node knows."),
    "audit": Lazy("folkmoot.node.cli.audit:audit", "Recompute every round from chain and blobs."),
    "experiment": Lazy("folkmoot.experiments.cli:experiment", "Which rule survives which attack."),
    "aggregate": Lazy("folkmoot.node.cli.aggregate:aggregate", "Apply a rule to safetensors files."),
}


@click.group(
    cls=LazyGroup,
    lazy=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--debug", is_flag=True, help="Show the trace of a failure.")
@click.version_option(package_name="folkmoot", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Train one model together: no server, no shared data, every round recomputable by anyone.

    \b
    Example:
      folkmoot init hospital-a
      folkmoot run --home hospital-a

    Exit codes: 0 done, 1 the check failed, 2 wrong usage, 3 an outside part could not be reached.
    """
    context.ensure_object(Frame).debug = debug


def execute(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code; failures are told on stderr."""
    frame = Frame()
    try:
        outcome = cli.main(list(arguments), prog_name="folkmoot", obj=frame, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return ExitCode.USAGE
    except click.Abort:
        return ExitCode.INTERRUPTED
    except (Exception, KeyboardInterrupt) as error:
        return report(error, debug=frame.debug, log=frame.log)
    return outcome if isinstance(outcome, int) else ExitCode.DONE


def main() -> NoReturn:
    """Entry point of the installed command."""
    sys.exit(execute(sys.argv[1:]))
