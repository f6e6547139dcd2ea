"""The tables of a report, from what was found: ranking, accuracies, scores, knowledge, troubles, the cells.

Accuracies are fractions as values and percentages as shown text.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean, stdev

from folkmoot.experiments.report.document import Entry, Table, mark_best, number, words
from folkmoot.experiments.report.findings import (
    ATTACK,
    KNOWLEDGE,
    RULE,
    SEED,
    Condition,
    Findings,
    mean_accuracy,
    ordered,
    setting_text,
)
from folkmoot.experiments.report.standings import Standing
from folkmoot.experiments.results import CellResult, Setting

__all__ = [
    "accuracy_statistics",
    "accuracy_table",
    "all_cells",
    "by_settings",
    "knowledge_table",
    "missing_table",
    "over_conditions",
    "percent",
    "ranking_table",
    "score_table",
    "settings_table",
    "trouble_table",
]

_MARK = "*"
_LACKING = " Cells of this rule are missing, so its worst case may be lower still."
_SHOWN_ATTACKS = 2
_DIGITS = 1
"""Decimals of a percentage."""


def percent(fraction: float | None) -> Entry:
    """A fraction shown in percent."""
    return number(fraction, _DIGITS, 100.0)


def ranking_table(places: Sequence[Standing]) -> Table:
    """One row for each rule, the best worst case first; a rule that lacks cells has an asterisk."""
    varied = any(standing.settings for standing in places)
    rows = []
    for standing in places:
        shared = sum(other.place == standing.place for other in places) > 1
        row = [
            Entry(f"{standing.place}{' =' if shared else ''}", standing.place),
            Entry(standing.rule + (_MARK if standing.missing else ""), standing.rule),
            percent(standing.worst),
            Entry(_attacks(standing.attacks), ", ".join(standing.attacks)),
            *([words(standing.settings)] if varied else []),
            percent(standing.honest),
            percent(standing.mean),
            Entry(f"{standing.cells} of {standing.expected}", standing.cells),
        ]
        rows.append(tuple(row))
    columns = ["place", "rule", "worst case", "worst under", *(["worst with"] if varied else [])]
    return Table(
        "ranking",
        "Rules by their worst case: final test accuracy (%), mean over seeds",
        (*columns, "without attack", "mean", "cells"),
        tuple(rows),
        labels=2,
        note=f"{_MARK}{_LACKING}" if any(standing.missing for standing in places) else "",
    )


def accuracy_table(findings: Findings, condition: Condition, rules: Sequence[str], name: str) -> Table:
    """Attacks down, rules across: mean final accuracy, with the standard deviation over several seeds."""
    rows, spread = [], False
    for attack in findings.attacks:
        entries = []
        for rule in rules:
            found = findings.samples(condition, rule, attack)
            entry = percent(mean_accuracy(found) if found else None)
            if len(found) > 1:
                spread = True
                deviation = 100 * stdev(cell.final.accuracy for cell in found)
                entry = Entry(f"{entry.text} ± {deviation:.{_DIGITS}f}", entry.value)
            entries.append(entry)
        rows.append((words(attack), *mark_best(entries)))
    title = "Final test accuracy (%), mean over seeds"
    title += " ± standard deviation" if spread else ""
    title += f"; {condition.label}" if condition.label else ""
    return Table(name, title, ("attack", *rules), tuple(rows), note=_bold(rules))


def over_conditions(
    findings: Findings,
    rules: Sequence[str],
    name: str,
    word: str,
    combine: Callable[[list[float]], float],
) -> Table:
    """Attacks down, rules across: what `combine`, called `word`, makes of the means under all conditions."""
    rows = []
    for attack in findings.attacks:
        entries = [percent(findings.combined(rule, attack, combine)) for rule in rules]
        rows.append((words(attack), *mark_best(entries)))
    title = f"Final test accuracy (%), mean over seeds, {word} over {len(findings.conditions)} combinations"
    return Table(name, title, ("attack", *rules), tuple(rows), note=_bold(rules))


def by_settings(findings: Findings, rules: Sequence[str], keys: Sequence[str], name: str) -> Table:
    """Values of some settings down, rules across: the lowest over attacks and all other settings."""
    rows = []
    for values in itertools.product(*(findings.values(key) for key in keys)):
        wanted = dict(zip(keys, values, strict=True))
        entries = [percent(findings.lowest(rule, wanted)) for rule in rules]
        rows.append((*(Entry(setting_text(value), value) for value in values), *mark_best(entries)))
    title = f"Final test accuracy (%), mean over seeds, lowest over attacks{findings.and_others(*keys)}"
    note = "Bold: the best rule of each row." if len(rules) > 1 else ""
    return Table(name, title, (*keys, *rules), tuple(rows), labels=len(keys), note=note)


def missing_table(findings: Findings, places: Sequence[Standing]) -> Table | None:
    """Rules down, attacks across: how many cells are missing. None when a product of settings is complete."""
    lacking = [standing for standing in places if standing.missing]
    attacks = [attack for attack in findings.attacks if any(attack in s.missing for s in lacking)]
    rows = []
    for standing in lacking:
        counts = [standing.missing.get(attack, 0) for attack in attacks]
        total = sum(counts)
        shown = (Entry(str(count), count) for count in (*counts, total))
        rows.append((words(standing.rule), *shown))
    title = "Cells that are missing although other cells lead to expect them"
    return Table("missing", title, ("rule", *attacks, "all"), tuple(rows)) if rows else None


def score_table(findings: Findings) -> Table | None:
    """Attacks down, scores across: how well each tells honest from malicious members. None without scores."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    cells: dict[str, int] = defaultdict(int)
    for cell in findings.cells:
        known = {score: auc for score, auc in cell.auc.items() if math.isfinite(auc)}
        for score, auc in known.items():
            found[str(cell.settings[ATTACK]), score].append(auc)
        cells[str(cell.settings[ATTACK])] += bool(known)
    if not found:
        return None
    scores = sorted({score for _, score in found})
    rows = []
    for attack in (attack for attack in findings.attacks if cells[attack]):
        means = [fmean(found[attack, score]) if found[attack, score] else None for score in scores]
        best = mark_best([number(mean, 3) for mean in means])
        rows.append((words(attack), *best, Entry(str(cells[attack]), cells[attack])))
    return Table(
        "scores",
        "Mean area under the ROC curve, honest against malicious members",
        ("attack", *scores, "cells"),
        tuple(rows),
        note="1: every honest member scores above every malicious one; 0.5: no better than chance; below "
        "0.5: malicious members score higher. Bold: the best score under each attack.",
    )


def knowledge_table(findings: Findings) -> Table | None:
    """What liars gain by seeing honest updates, from cells alike in all else. None without such pairs."""
    found: dict[tuple[Setting, ...], dict[str, CellResult]] = defaultdict(dict)
    for cell in findings.cells:
        others = tuple(v for k, v in sorted(cell.settings.items()) if k != KNOWLEDGE)
        found[others][str(cell.settings.get(KNOWLEDGE))] = cell
    pairs: dict[tuple[str, str], list[tuple[CellResult, CellResult]]] = defaultdict(list)
    for both in found.values():
        if {"omniscient", "blind"} <= both.keys():
            settings = both["blind"].settings
            pairs[str(settings[ATTACK]), str(settings[RULE])].append((both["omniscient"], both["blind"]))
    rows = []
    for attack in findings.attacks:
        for rule in findings.rules:
            if known := pairs.get((attack, rule)):
                seeing = mean_accuracy(cell for cell, _ in known)
                blind = mean_accuracy(cell for _, cell in known)
                difference = number(blind - seeing, _DIGITS, 100.0, "+")
                count = Entry(str(len(known)), len(known))
                rows.append((words(attack), words(rule), percent(seeing), percent(blind), difference, count))
    if not rows:
        return None
    return Table(
        "knowledge",
        "Omniscient against blind liars: final test accuracy (%), mean over pairs of cells alike in all else",
        ("attack", "rule", "omniscient", "blind", "difference", "pairs"),
        tuple(rows),
        labels=2,
        note="Difference: blind less omniscient, in percentage points. Above 0: liars did more harm when "
        "they saw the honest updates.",
    )


def trouble_table(findings: Findings) -> Table | None:
    """Broken models, updates left out and rounds skipped, by rule and attack. None where all is well."""
    found: dict[tuple[str, str], list[CellResult]] = defaultdict(list)
    for cell in findings.cells:
        found[str(cell.settings[RULE]), str(cell.settings[ATTACK])].append(cell)
    rows = []
    for rule in findings.rules:
        for attack in findings.attacks:
            cells = found[rule, attack]
            broken = sum(not math.isfinite(cell.final.loss) for cell in cells)
            counts = broken, sum(cell.excluded for cell in cells), sum(cell.skipped for cell in cells)
            if any(counts):
                shown = (Entry(f"{count:,}", count) for count in (*counts, len(cells)))
                rows.append((words(rule), words(attack), *shown))
    if not rows:
        return None
    return Table(
        "troubles",
        "Broken models, updates left out, rounds skipped; sums over cells",
        ("rule", "attack", "broken models", "updates left out", "rounds skipped", "cells"),
        tuple(rows),
        labels=2,
        note="Broken: the loss of the last model is not a finite number. Left out: updates that could not be "
        "put on the lattice. Skipped: rounds whose updates the rule could not aggregate.",
    )


def settings_table(findings: Findings) -> Table:
    """Every setting with its value or values."""
    known: dict[str, dict[Setting, None]] = defaultdict(dict)
    for cell in findings.cells:
        for key, value in cell.settings.items():
            known[key][value] = None
    rows = []
    for key in sorted(known):
        values = ordered(key, known[key])
        shown = ", ".join(setting_text(value) or "none" for value in values)
        rows.append((words(key), Entry(shown, shown), Entry(str(len(values)), len(values))))
    return Table("settings", "Settings of the cells", ("setting", "values", "number"), tuple(rows), labels=2)


def accuracy_statistics(findings: Findings) -> Table:
    """One row for each condition, rule and attack: cells, mean, lowest, highest, standard deviation."""
    rows = []
    for condition in findings.conditions:
        for rule in findings.rules:
            for attack in findings.attacks:
                if found := findings.samples(condition, rule, attack):
                    values = [cell.final.accuracy for cell in found]
                    deviation = stdev(values) if len(values) > 1 else None
                    numbers = (len(values), fmean(values), min(values), max(values), deviation)
                    settings = (Entry(setting_text(value), value) for _, value in condition.values)
                    row = (*settings, words(rule), words(attack), *(Entry("", value) for value in numbers))
                    rows.append(row)
    columns = (*findings.varying, RULE, ATTACK, "cells", "mean", "lowest", "highest", "standard deviation")
    return Table("accuracy", "Final test accuracy over seeds, fractions", columns, tuple(rows))


def all_cells(findings: Findings) -> Table:
    """One row for each cell: settings, last accuracy and loss, updates left out, rounds skipped, areas."""
    settings = sorted({key for cell in findings.cells for key in cell.settings} - {RULE, ATTACK, SEED})
    scores = sorted({score for cell in findings.cells for score in cell.auc})
    rows = []
    for cell in findings.cells:
        final = cell.final
        values: list[Setting | None] = [cell.id]
        values += [cell.settings.get(key) for key in (RULE, ATTACK, *settings, SEED)]
        values += [final.round, final.accuracy, final.loss, cell.excluded, cell.skipped]
        values += [cell.auc.get(score) for score in scores]
        rows.append(tuple(Entry("", value) for value in values))
    measured = ("round", "accuracy", "loss", "excluded", "skipped", *(f"auc {score}" for score in scores))
    return Table("cells", "Every cell", ("cell", RULE, ATTACK, *settings, SEED, *measured), tuple(rows))


def _attacks(attacks: Sequence[str]) -> str:
    more = len(attacks) - _SHOWN_ATTACKS
    return ", ".join(attacks[:_SHOWN_ATTACKS]) + (f" and {more} more" if more > 0 else "")


def _bold(rules: Sequence[str]) -> str:
    return "Bold: the best rule under each attack." if len(rules) > 1 else ""
