"""`folkmoot experiment`: grids of federations in memory, their reports, and one cell as a real federation.

Sub-commands are loaded when they are called.
"""

from __future__ import annotations

from typing import Final

from folkmoot.node.cli import Lazy, LazyGroup

__all__ = ["experiment"]

_EXTRA: Final = "experiments"

_COMMANDS: Final = {
    "run": Lazy("folkmoot.experiments.cli.run:run", "Run a grid; what is done stays done.", _EXTRA),
    "report": Lazy(
        "folkmoot.experiments.cli.report:report", "Pictures, tables and a ranking of a grid.", _EXTRA
    ),
    "search": Lazy("folkmoot.experiments.cli.search:search", "Each rule's best setting.", _EXTRA),
    "network": Lazy(
        "folkmoot.experiments.cli.network:network",
        "One cell in memory and as processes: the same models?",
        _EXTRA,
    ),
}

experiment = LazyGroup(
    "experiment",
    lazy=_COMMANDS,
    short_help="Which rule survives which attack.",
    help="""Which rule survives which attack: federations in memory, with the code that nodes run.

    \b
    Example:
      folkmoot experiment run grid.toml --out found
      folkmoot experiment report found
    """,
)
