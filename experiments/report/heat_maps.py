"""Heat maps of accuracy with the number in every field; a field without cells is hatched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from folkmoot.experiments.report.canvas import Range, draw, wrap

__all__ = ["Grid", "heat_maps"]

_COLOURS: Final = "cividis"
_LABEL: Final = 24
"""Characters in a line of a row's label."""
_TICK: Final = 13
"""Characters in a line of a column's label."""
_MOST_ACROSS: Final = 3


@dataclass(frozen=True, slots=True)
class Grid:
    """Fractions by row and column, None where there is nothing."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


def heat_maps(grids: Sequence[Grid], row_name: str, column_name: str, scale: Range) -> bytes:
    """A PNG with all grids, which share their rows, their columns and one colour bar in percent."""
    first = grids[0]
    across = _across(len(grids), len(first.columns))
    down = math.ceil(len(grids) / across)
    rows = [wrap(row, _LABEL) for row in first.rows]
    columns = [wrap(column, _TICK) for column in first.columns]
    tall = max(0.42, 0.19 * max(row.count("\n") + 1 for row in rows))
    label = 0.085 * max(len(line) for row in rows for line in row.split("\n"))
    width = across * 0.92 * len(columns) + label + 1.7
    ticks = 0.17 * max(column.count("\n") + 1 for column in columns)
    width, height = max(width, 4.2), max(down * (tall * len(rows) + 0.35) + ticks + 0.5, 2.2)
    thickness = 0.2

    def paint(figure: Any) -> None:
        panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for panel, grid in zip(panels.flat, grids, strict=False):
            image = _map(panel, grid, scale)
        for panel in panels.flat[len(grids) :]:
            panel.set_visible(False)
        for place, panel in enumerate(panels.flat[: len(grids)]):
            panel.set_yticks(range(len(rows)), rows)
            panel.set_xticks(range(len(columns)), columns)
            panel.tick_params(length=0, labelbottom=place + across >= len(grids))
        figure.supylabel(row_name, fontsize=9)
        figure.supxlabel(column_name, fontsize=9)
        aspect = (height - ticks - 0.5) / thickness
        bar = figure.colorbar(image, ax=panels, fraction=0.05, pad=0.02, aspect=aspect)
        bar.set_label("test accuracy (%)")
        bar.outline.set_visible(False)

    return draw((width, height), paint)


def _across(count: int, columns: int) -> int:
    """How many maps stand side by side: as many as are readable, with few gaps in the last line."""
    most = min(count, max(1, min(_MOST_ACROSS, 12 // max(3, columns))))
    return min(range(min(2, most), most + 1), key=lambda across: (-count % across, -across))


def _map(panel: Any, grid: Grid, scale: Range) -> Any:
    from matplotlib.patches import Rectangle

    numbers = [[math.nan if v is None else 100 * v for v in row] for row in grid.values]
    image = panel.imshow(numbers, cmap=_COLOURS, vmin=scale.low, vmax=scale.high, aspect="auto")
    for y, row in enumerate(numbers):
        for x, value in enumerate(row):
            if math.isnan(value):
                panel.add_patch(
                    Rectangle(
                        (x - 0.5, y - 0.5), 1, 1, facecolor="#eeeeee", edgecolor="#bbbbbb", hatch="///", lw=0
                    )
                )
            else:
                colour = _contrast(image.cmap(image.norm(value)))
                panel.text(x, y, f"{value:.1f}", ha="center", va="center", color=colour, fontsize=9)
    for edge in range(1, len(grid.columns)):
        panel.axvline(edge - 0.5, color="white", linewidth=1)
    for edge in range(1, len(grid.rows)):
        panel.axhline(edge - 0.5, color="white", linewidth=1)
    panel.spines[:].set_visible(False)
    if grid.title:
        panel.set_title(wrap(grid.title, max(20, 12 * len(grid.columns))), loc="left")
    return image


def _contrast(colour: Sequence[float]) -> str:
    """Black or white, whichever contrasts more with the colour (relative luminance of WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "white"
