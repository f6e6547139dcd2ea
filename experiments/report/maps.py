"""Which heat maps a report has: rules by attacks, by one setting, and by two settings for each rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from folkmoot.experiments.report.canvas import Range
from folkmoot.experiments.report.document import Picture
from folkmoot.experiments.report.findings import Condition, Findings, setting_text
from folkmoot.experiments.report.heat_maps import Grid, heat_maps

__all__ = ["by_attack", "by_setting", "by_two_settings", "over_conditions"]


def by_attack(
    findings: Findings, rules: Sequence[str], condition: Condition, name: str, scale: Range
) -> Picture:
    """Mean final accuracy over seeds by rule and attack, under one condition."""
    values = [[findings.mean(condition, rule, attack) for attack in findings.attacks] for rule in rules]
    place = f"; {condition.label}" if condition.label else ""
    caption = f"Final test accuracy (%), mean over seeds{place}."
    return _picture(name, caption, [_grid("", rules, findings.attacks, values)], ("rule", "attack"), scale)


def over_conditions(
    findings: Findings,
    rules: Sequence[str],
    name: str,
    word: str,
    combine: Callable[[list[float]], float],
    scale: Range,
) -> Picture:
    """What `combine`, called `word`, makes of the means under all conditions, by rule and attack."""
    values = [[findings.combined(rule, attack, combine) for attack in findings.attacks] for rule in rules]
    caption = f"Final test accuracy (%): {word} over all {len(findings.conditions)} combinations of settings."
    return _picture(name, caption, [_grid("", rules, findings.attacks, values)], ("rule", "attack"), scale)


def by_setting(findings: Findings, rules: Sequence[str], key: str, name: str, scale: Range) -> Picture:
    """The lowest over attacks and all other settings, by rule and the values of one setting."""
    choices = findings.values(key)
    values = [[findings.lowest(rule, {key: choice}) for choice in choices] for rule in rules]
    caption = f"Final test accuracy (%) by {key}: lowest over attacks{findings.and_others(key)}."
    grid = _grid("", rules, [setting_text(choice) for choice in choices], values)
    return _picture(name, caption, [grid], ("rule", _axis(key)), scale)


def by_two_settings(
    findings: Findings, rules: Sequence[str], keys: tuple[str, str], name: str, scale: Range
) -> Picture:
    """One map for each rule: the lowest over attacks and other settings, by the values of two settings."""
    down, across = (findings.values(key) for key in keys)
    grids = []
    for rule in rules:
        values = [[findings.lowest(rule, {keys[0]: d, keys[1]: a}) for a in across] for d in down]
        grids.append(_grid(rule, [setting_text(d) for d in down], [setting_text(a) for a in across], values))
    caption = (
        f"Final test accuracy (%) by {keys[0]} and {keys[1]}, one map for each rule: lowest over "
        f"attacks{findings.and_others(*keys)}."
    )
    return _picture(name, caption, grids, (_axis(keys[0]), _axis(keys[1])), scale)


def _grid(
    title: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]]
) -> Grid:
    return Grid(title, tuple(rows), tuple(columns), tuple(tuple(row) for row in values))


def _axis(key: str) -> str:
    return {"federation.malicious": "malicious members"}.get(key, key)


def _picture(name: str, caption: str, grids: Sequence[Grid], axes: tuple[str, str], scale: Range) -> Picture:
    empty = any(value is None for grid in grids for row in grid.values for value in row)
    caption += " Hatched: no cell is done." if empty else ""
    alternative = f"Heat map with {axes[0]} down and {axes[1]} across; the numbers are in the table."
    return Picture(name, heat_maps(grids, *axes, scale), caption, alternative)
