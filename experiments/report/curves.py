"""Accuracy over rounds: one panel for each attack, one line for each rule, a band for what seeds change."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any, Final

from folkmoot.experiments.report.canvas import COLOURS, Range, draw, wrap
from folkmoot.experiments.report.document import Picture
from folkmoot.experiments.report.findings import Condition, Findings
from folkmoot.experiments.results import CellResult

__all__ = ["curves"]

_MARKERS: Final = "osD^vPX*"
_DASHES: Final = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
_MOST_LINES: Final = len(COLOURS)
_MARKS_PER_LINE: Final = 5


def curves(findings: Findings, condition: Condition, name: str, scale: Range) -> Iterator[Picture]:
    """One picture, or several with 8 rules or fewer in each; a rule looks the same under every condition."""
    count = math.ceil(len(findings.rules) / _MOST_LINES)
    share = math.ceil(len(findings.rules) / count)
    attacks = [
        attack
        for attack in findings.attacks
        if any(findings.samples(condition, rule, attack) for rule in findings.rules)
    ]
    for number in range(count):
        rules = findings.rules[number * share : (number + 1) * share]
        spread = any(len(findings.samples(condition, r, a)) > 1 for r in rules for a in attacks)
        part = f", rules {number * share + 1} to {number * share + len(rules)}" if count > 1 else ""
        yield Picture(
            f"{name}-part-{number + 1}" if count > 1 else name,
            _paint(findings, condition, rules, attacks, scale),
            f"Test accuracy over rounds{part}{'; ' + condition.label if condition.label else ''}. "
            + ("Line: mean over seeds; band: lowest to highest." if spread else "One seed for each line."),
            f"Line charts of test accuracy over rounds: one for each of {len(attacks)} attacks, one line for "
            f"each of {len(rules)} rules. The last values are in the table.",
        )


def _paint(
    findings: Findings, condition: Condition, rules: Sequence[str], attacks: Sequence[str], scale: Range
) -> bytes:
    columns = len(attacks) if len(attacks) <= 3 else 4 if len(attacks) in (4, 7, 8) or len(attacks) > 9 else 3
    lines = math.ceil(len(attacks) / columns)
    width = max(6.4, 3.0 * columns)
    per_line = max(1, min(len(rules), int(width * 11 / (max(map(len, rules)) + 8))))
    legend = 0.3 + 0.2 * math.ceil(len(rules) / per_line)

    cells = [
        cell for rule in rules for attack in attacks for cell in findings.samples(condition, rule, attack)
    ]
    rounds = sorted({evaluation.round for cell in cells for evaluation in cell.evaluations})

    def paint(figure: Any) -> None:
        from matplotlib.lines import Line2D

        panels = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
        for place, (panel, attack) in enumerate(zip(panels, attacks, strict=False)):
            for number, rule in enumerate(rules):
                if found := findings.samples(condition, rule, attack):
                    _line(panel, number, found)
            _frame(panel, attack, scale)
            if place % columns == 0:
                panel.set_ylabel("test accuracy (%)")
            # With shared axes only the last line has numbers; above a gap they are needed as well.
            if place + columns >= len(attacks):
                panel.tick_params(labelbottom=True)
                panel.set_xlabel("rounds")
        for panel in panels[len(attacks) :]:
            panel.set_visible(False)
        if len(rounds) == 1:
            panels[0].set_xlim(rounds[0] - 1, rounds[0] + 1)
            panels[0].set_xticks(rounds)
        handles = [Line2D([], [], label=rule, **_style(number)) for number, rule in enumerate(rules)]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=per_line, frameon=False, handlelength=3.2
        )

    return draw((width, 2.35 * lines + legend + 0.3), paint)


def _style(place: int) -> dict[str, Any]:
    """How the rule at this place of a picture looks."""
    dashes, marker = _DASHES[place % len(_DASHES)], _MARKERS[place]
    return {
        "color": COLOURS[place], "linestyle": dashes, "linewidth": 1.4, "marker": marker, "markersize": 4.5,
    }  # fmt: skip


def _line(panel: Any, place: int, cells: Sequence[CellResult]) -> None:
    rounds, low, mean, high = _over_seeds(cells)
    step = max(1, len(rounds) // _MARKS_PER_LINE)
    panel.plot(rounds, mean, markevery=(place % step, step), clip_on=False, zorder=3, **_style(place))
    if len(cells) > 1:
        panel.fill_between(rounds, low, high, color=COLOURS[place], alpha=0.16, linewidth=0)


def _over_seeds(cells: Sequence[CellResult]) -> tuple[list[int], list[float], list[float], list[float]]:
    """Rounds, then the lowest, mean and highest accuracy of each in percent, over the seeds that have it."""
    found: dict[int, list[float]] = defaultdict(list)
    for cell in cells:
        for evaluation in cell.evaluations:
            found[evaluation.round].append(100 * evaluation.accuracy)
    rounds = sorted(found)
    values = [found[number] for number in rounds]
    return rounds, [min(v) for v in values], [fmean(v) for v in values], [max(v) for v in values]


def _frame(panel: Any, attack: str, scale: Range) -> None:
    from matplotlib.ticker import MaxNLocator

    panel.set_title(wrap(attack, 34), loc="left")
    panel.set_ylim(scale.low, scale.high)
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
