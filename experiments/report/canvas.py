"""What all pictures share: the look, the colours, and PNG bytes that depend on nothing but the figure."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["COLOURS", "Range", "accuracy_range", "draw", "wrap"]

# Okabe and Ito (2008), told apart by every common kind of colour vision; grey in place of their yellow, which
# a thin line on white does not show.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888")

_DPI = 150
_LOOK: Final[Mapping[str, object]] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.0,
    "legend.fontsize": 9.0,
    "text.parse_math": False,
    "svg.hashsalt": "folkmoot",
}


@dataclass(frozen=True, slots=True)
class Range:
    """From where to where the accuracies of all pictures of a report reach, in percent."""

    low: float
    high: float


def accuracy_range(fractions: list[float]) -> Range:
    """The range of accuracies, widened to whole tens."""
    low, high = 10 * math.floor(min(fractions) * 10), 10 * math.ceil(max(fractions) * 10)
    return Range(low, max(high, low + 10))


def draw(size: tuple[float, float], paint: Callable[[Any], None]) -> bytes:
    """The PNG of a figure so many inches wide and high, which `paint` fills."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # The user's matplotlibrc must not change the picture.
    look = {
        k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith(("backend", "interactive"))
    }
    with matplotlib.rc_context({**look, **_LOOK}):
        figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure)
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def wrap(label: str, width: int) -> str:
    """The label on several lines of about so many characters."""
    return "\n".join(textwrap.wrap(label, width)) or label
