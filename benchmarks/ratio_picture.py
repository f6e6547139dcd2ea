"""A picture of ratios: one line for each rule, one mark for each size, on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from race import Outcome

# Okabe and Ito's colours, told apart by every common kind of colour vision; shapes tell d apart as well.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_SHAPES = ("o", "s", "^", "D", "v")
_SPREAD = 0.6


def draw_ratios(outcomes: Sequence[Outcome], path: Path, caption: str) -> None:
    """Write a PNG (or what the suffix says). Hollow marks at the right edge: no peer could run that size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    shown = [outcome for outcome in outcomes if outcome.peers_have_it and outcome.ours.seconds]
    labels = list(dict.fromkeys(outcome.label for outcome in shown))
    sizes = sorted({(outcome.n, outcome.values) for outcome in shown})
    members, models = sorted({n for n, _ in sizes}), sorted({d for _, d in sizes})
    largest = max((o.ratio for o in shown if o.ratio is not None), default=10.0)
    edge = largest * 3
    figure, axes = plt.subplots(figsize=(9, 1.8 + 0.42 * max(len(labels), 3)), layout="constrained")
    for outcome in shown:
        step = sizes.index((outcome.n, outcome.values)) - (len(sizes) - 1) / 2
        height = labels.index(outcome.label) + _SPREAD * step / max(len(sizes) - 1, 1)
        colour = _COLOURS[members.index(outcome.n) % len(_COLOURS)]
        axes.plot(
            outcome.ratio or edge, height,
            marker=_SHAPES[models.index(outcome.values) % len(_SHAPES)], markersize=6, linestyle="",
            color=colour, markerfacecolor=colour if outcome.ratio else "none", clip_on=False,
        )  # fmt: skip
    axes.axvline(1, color="black", linewidth=1.2)
    axes.text(1.04, -0.78, "1x: as fast as the fastest peer", va="bottom", fontsize=8)
    for boundary in range(1, len(labels)):
        axes.axhline(boundary - 0.5, color="#dddddd", linewidth=0.6)
    axes.set_xscale("log")
    axes.set_xlim(min(0.5, *(o.ratio * 0.7 for o in shown if o.ratio), 0.5), edge)
    axes.set_ylim(len(labels) - 0.4, -0.8)
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("seconds of the fastest published implementation / ours")
    marks = [
        Line2D(
            [], [], linestyle="", color=_COLOURS[members.index(n) % len(_COLOURS)],
            marker=_SHAPES[models.index(d) % len(_SHAPES)], label=f"n = {n}, d = {d:.0e}".replace("e+0", "e"),
        )
        for n, d in sizes
    ]  # fmt: skip
    if any(outcome.ratio is None for outcome in shown):
        marks.append(
            Line2D([], [], linestyle="", color="black", marker="o", markerfacecolor="none",
                   label="no peer could run it")
        )  # fmt: skip
    figure.legend(handles=marks, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    axes.set_title(caption, fontsize=9, loc="left", pad=18)
    figure.savefig(path, dpi=150)
    plt.close(figure)
