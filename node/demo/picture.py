"""The picture of one or several demonstrations: accuracy, contributions and seconds by phase."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from folkmoot.node.demo.summary import GOAL, PHASES, DemoSummary

__all__ = ["draw"]

# Okabe and Ito (2008): eight colours that people with any common colour vision tell apart.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
_MARKERS = "osD^vPX*"
_HONEST, _MALICIOUS = "#0072B2", "#D55E00"


def draw(path: Path, summaries: Sequence[DemoSummary], goal: float = GOAL) -> None:
    """Draw a PNG: accuracy per round of every run; contributions and phase times of the first.

    With several runs the contributions show each rule's honest and malicious mean. Replaces the file whole.
    Raises ValueError without a run.
    """
    if not summaries:
        raise ValueError("a picture needs at least one demonstration, found none")
    # The object interface needs no display and no process-wide back end.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, contributions, phases = figure.subplots(1, 3)
    federation = summaries[0].federation
    liars = f", {len(federation.malicious)} malicious ({federation.attack})" if federation.malicious else ""
    figure.suptitle(f"Folkmoot: {federation.dataset}, {federation.members} members{liars}")
    _draw_accuracy(accuracy, summaries, goal)
    if len(summaries) == 1:
        _draw_contributions(contributions, summaries[0])
        _draw_phases(phases, [str(report.round) for report in summaries[0].rounds], summaries[0].rounds)
        phases.set_xlabel("round")
    else:
        _draw_contributions_by_rule(contributions, summaries)
        last = [summary.rounds[-1] for summary in summaries if summary.rounds]
        _draw_phases(phases, [s.federation.rule for s in summaries if s.rounds], last)
        phases.set_xlabel("rule (last round)")
        phases.tick_params(axis="x", rotation=25)
    partial = path.with_name(path.name + ".partial")
    try:
        figure.savefig(partial, format="png", dpi=150, metadata={"Software": "folkmoot"})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _draw_accuracy(axes: Any, summaries: Sequence[DemoSummary], goal: float) -> None:
    for index, summary in enumerate(summaries):
        points = [(-1, summary.genesis_accuracy), *((r.round, r.accuracy) for r in summary.rounds)]
        known = [(x, y) for x, y in points if y is not None]
        axes.plot(
            [x for x, _ in known],
            [y for _, y in known],
            color=_COLOURS[index % len(_COLOURS)],
            marker=_MARKERS[index % len(_MARKERS)],
            label=summary.federation.rule,
            clip_on=False,
        )
    axes.axhline(goal, color="grey", linestyle="--", linewidth=1, label=f"goal {goal:.2f}")
    axes.set(
        title="Accuracy of the global model",
        xlabel="after round (-1 is the genesis model)",
        ylabel="accuracy on the test set (fraction)",
        ylim=(0, 1),
        xticks=range(-1, max(s.federation.rounds for s in summaries)),
    )
    axes.legend(loc="center right", framealpha=0.9)
    axes.grid(alpha=0.3)


def _draw_contributions(axes: Any, summary: DemoSummary) -> None:
    federation, shares = summary.federation, summary.contributions
    for members, colour, hatch, label in (
        (federation.honest, _HONEST, "", "honest"),
        (federation.malicious, _MALICIOUS, "//", "malicious"),
    ):
        if members:
            heights = [shares[member] for member in members]
            bars = axes.bar(members, heights, color=colour, hatch=hatch, edgecolor="white", label=label)
            axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set(
        title="Contribution score, mean of all rounds",
        xlabel="member",
        ylabel="score (0 to 1)",
        ylim=(0, 1.08),
        xticks=range(federation.members),
    )
    axes.legend(loc="upper right")


def _draw_contributions_by_rule(axes: Any, summaries: Sequence[DemoSummary]) -> None:
    places = np.arange(len(summaries))
    for offset, colour, hatch, label in (
        (-0.2, _HONEST, "", "honest members"),
        (0.2, _MALICIOUS, "//", "malicious members"),
    ):
        heights = []
        for summary in summaries:
            group = summary.federation.honest if offset < 0 else summary.federation.malicious
            heights.append(float(np.mean([summary.contributions[m] for m in group])) if group else 0.0)
        bars = axes.bar(
            places + offset, heights, 0.38, color=colour, hatch=hatch, edgecolor="white", label=label
        )
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set(
        title="Contribution score, mean of all rounds",
        xlabel="rule",
        ylabel="score (0 to 1)",
        ylim=(0, 1.2),
    )
    axes.set_xticks(places, [summary.federation.rule for summary in summaries], rotation=25)
    axes.legend(loc="upper right")


def _draw_phases(axes: Any, names: Sequence[str], reports: Sequence[Any]) -> None:
    bottom = np.zeros(len(reports))
    for phase, colour in zip(PHASES, _COLOURS, strict=False):
        seconds = np.array([report.phases.get(phase, 0.0) for report in reports])
        axes.bar(names, seconds, bottom=bottom, color=colour, edgecolor="white", label=phase)
        bottom = bottom + seconds
    axes.set(title="Where a round's time goes", ylabel="seconds (median of the honest members)")
    axes.set_ylim(0, max(1.0, 1.35 * float(bottom.max(initial=0.0))))
    axes.legend(loc="upper center", ncols=3)
