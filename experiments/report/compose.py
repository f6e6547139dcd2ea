"""The order of a report: from what was found to a document of sections, tables and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from folkmoot.experiments.report import maps, tables
from folkmoot.experiments.report.canvas import Range, accuracy_range
from folkmoot.experiments.report.curves import curves
from folkmoot.experiments.report.document import Block, Document, Names, Paragraph, Section
from folkmoot.experiments.report.findings import Findings, setting_text
from folkmoot.experiments.report.standings import Standing, standings

__all__ = ["compose"]

_PARTITION = "partition"
_LIARS = ("federation.malicious", "federation.f")


def compose(findings: Findings, expected: int | None) -> Document:
    """The report on these findings; expected: how many cells the grid has, None when that is not known."""
    places = standings(findings)
    rules = [standing.rule for standing in places]
    scale = accuracy_range([e.accuracy for cell in findings.cells for e in cell.evaluations])
    missing = tables.missing_table(findings, places)
    ranking = (tables.ranking_table(places), *([missing] if missing else []))
    sections = [Section("Ranking", "ranking", ranking)]
    if len(findings.conditions) > 1:
        sections.append(Section("Overview", "overview", tuple(_overview(findings, rules, scale))))
    sections.append(_conditions(findings, rules, scale))
    for title, anchor, table in (
        ("Contribution scores", "scores", tables.score_table(findings)),
        ("What liars know", "knowledge", tables.knowledge_table(findings)),
        ("Troubles", "troubles", tables.trouble_table(findings)),
        ("Settings", "settings", tables.settings_table(findings)),
    ):
        if table is not None:
            sections.append(Section(title, anchor, (table,)))
    files = (tables.accuracy_statistics(findings), tables.all_cells(findings))
    return Document(_title(findings), tuple(_lead(findings, places, expected)), tuple(sections), files)


def _title(findings: Findings) -> str:
    common = [
        setting_text(findings.cells[0].settings[key])
        for key in ("data", "model")
        if key not in findings.varying and key in findings.cells[0].settings
    ]
    return "Aggregation rules under attack" + (f": {', '.join(common)}" if common else "")


def _lead(findings: Findings, places: Sequence[Standing], expected: int | None) -> Iterator[Paragraph]:
    missing = sum(sum(place.missing.values()) for place in places)
    yield Paragraph(_completeness(len(findings.cells), missing, expected))
    best = [place for place in places if place.place == 1]
    names = " and ".join(place.rule for place in best)
    where = f"under {best[0].attacks[0]}" + (f" with {best[0].settings}" if best[0].settings else "")
    worst = f"{tables.percent(best[0].worst).text} %"
    known = "worst case so far" if missing else "worst case"
    if len(places) == 1:
        yield Paragraph(f"The {known} of {names} is {worst}, {where}.")
    elif len(best) == 1:
        yield Paragraph(f"{names} has the best {known}: {worst}, {where}.")
    else:
        yield Paragraph(f"{names} share the best {known}: {worst}.")
    seeds = len(findings.seeds)
    yield Paragraph(
        "Accuracy is that of the last global model on the common test set"
        + (f", the mean over {seeds} seeds." if seeds > 1 else "; there is one seed, so no spread is known.")
    )


def _completeness(done: int, missing: int, expected: int | None) -> str:
    if expected is None:
        lacking = (
            f" At least {missing} {_is(missing)} missing: other cells lead to expect more." if missing else ""
        )
        return f"This report covers {_cells(done)}.{lacking}"
    if done < expected:
        return f"Incomplete: {done} of {_cells(expected)} {_is(done)} done, and nothing else is covered here."
    if done > expected:
        return f"{_cells(done)} {_is(done)} done; {expected} {'was' if expected == 1 else 'were'} expected."
    return f"All {_cells(done)} are done." if done > 1 else "The only cell is done."


def _cells(count: int) -> str:
    return f"{count} cell" if count == 1 else f"{count} cells"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _overview(findings: Findings, rules: Sequence[str], scale: Range) -> Iterator[Block]:
    yield Paragraph(
        f"{len(findings.conditions)} {'combinations' if len(findings.varying) > 1 else 'values'} of "
        f"{_listed(findings.varying)} occur. First what remains over all of them, then what each setting "
        "does; each has its own section below."
    )
    for name, word, combine in (("lowest", "lowest", min), ("mean", "mean", fmean)):
        yield maps.over_conditions(findings, rules, f"map-{name}", word, combine, scale)
        yield tables.over_conditions(findings, rules, f"overview-{name}", word, combine)
    names = Names()
    for key in findings.varying:
        name = f"by-{names.of(key)}"
        yield maps.by_setting(findings, rules, key, f"map-{name}", scale)
        yield tables.by_settings(findings, rules, (key,), f"overview-{name}")
    for key in _LIARS:
        if {key, _PARTITION} <= set(findings.varying):
            keys = (key, _PARTITION)
            yield maps.by_two_settings(findings, rules, keys, "map-by-malicious-and-partition", scale)
            yield tables.by_settings(findings, rules, keys, "overview-by-malicious-and-partition")
            break


def _conditions(findings: Findings, rules: Sequence[str], scale: Range) -> Section:
    names = Names()
    found = []
    for condition in findings.conditions:
        name = names.of(
            *(f"{key.rpartition('.')[2]} {setting_text(value)}" for key, value in condition.values)
        )
        blocks: list[Block] = [*curves(findings, condition, f"curves-{name}", scale)]
        blocks.append(maps.by_attack(findings, rules, condition, f"map-{name}", scale))
        blocks.append(tables.accuracy_table(findings, condition, rules, f"accuracy-{name}"))
        found.append(Section(condition.label, f"condition-{name}", tuple(blocks)))
    if len(found) == 1:
        return Section("Accuracy", "accuracy", found[0].blocks)
    return Section(f"Accuracy by {_listed(findings.varying)}", "accuracy", inner=tuple(found))


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
