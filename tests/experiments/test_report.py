"""The report of a grid says which rule holds, what is missing, and says it in the same bytes every time."""

from __future__ import annotations

import csv
import io
import itertools
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from folkmoot.experiments.report import NoResults, UnusableResult, write_report
from folkmoot.experiments.report.findings import find
from folkmoot.experiments.report.standings import Standing, standings
from folkmoot.experiments.results import CellResult, Evaluation, Setting

RULES = (
    "mean",
    "median",
    "trimmed-mean",
    "nnm + krum",
    "geometric-median",
    "centered-clipping tau=10 steps=3",
)
ATTACKS = (
    "none",
    "sign-flip strength=10",
    "little-is-enough",
    "inner-product strength=0.5",
    "label-flip",
    "gaussian sigma=1",
)
PARTITIONS = ("iid", "dirichlet alpha=0.1", "dirichlet alpha=1")


def cell(
    accuracy: float | Sequence[float],
    *,
    auc: Mapping[str, float] | None = None,
    loss: float = 0.5,
    skipped: int = 0,
    **changes: Setting,
) -> CellResult:
    """A finished cell with these accuracies, evaluated every 10 rounds; a name's dot is two underscores."""
    settings: dict[str, Setting] = {
        "data": "digits", "partition": "iid", "model": "mlp hidden=64", "rule": "mean", "attack": "none",
        "attack.knowledge": "none", "federation.members": 25, "federation.malicious": 5, "federation.f": 5,
        "training.lr": 0.1, "lattice.bits": 16, "seed": 1,
    }  # fmt: skip
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    values = [accuracy] if isinstance(accuracy, float) else list(accuracy)
    evaluations = tuple(Evaluation(10 * i, value, loss, "00") for i, value in enumerate(values))
    name = "|".join(f"{key}={value}" for key, value in sorted(settings.items()))
    return CellResult(name, settings, evaluations, {}, auc or {}, 0, skipped)


def plausible(
    rules: Sequence[str] = RULES,
    attacks: Sequence[str] = ATTACKS,
    partitions: Sequence[str] = PARTITIONS,
    seeds: Sequence[int] = (1, 2, 3),
    rounds: int = 200,
    **others: Setting,
) -> list[CellResult]:
    """A product of settings whose curves rise, dip under attack and differ a little between seeds."""
    found = []
    for rule, attack, partition, seed in itertools.product(rules, attacks, partitions, seeds):
        chance = random.Random(f"{rule}/{attack}/{partition}/{seed}/{sorted(others.items())}")
        held = random.Random(f"{rule}/{attack}").uniform(0.25, 1.0) if attack != "none" else 0.99
        held = 0.12 if rule == "mean" and attack.startswith("sign") else held
        top = 0.96 * held - 0.12 * partitions.index(partition) * (0.4 if attack == "none" else 1.0)
        curve = [
            min(1.0, max(0.05, 0.1 + (top - 0.1) * (1 - math.exp(-r / 45)) + chance.gauss(0, 0.02)))
            for r in range(0, rounds + 1, 10)
        ]
        blind = attack in ("none", "label-flip", "gaussian sigma=1")
        auc = (
            {} if attack == "none" else {"cosine": chance.uniform(0.4, 1), "distance": chance.uniform(0.5, 1)}
        )
        broken = rule == "mean" and attack.startswith("gaussian")
        found.append(
            cell(
                curve,
                auc=auc,
                loss=math.inf if broken else 0.4,
                rule=rule,
                attack=attack,
                partition=partition,
                seed=seed,
                attack__knowledge="none" if blind else str(others.get("knowledge", "omniscient")),
                **{key: value for key, value in others.items() if key != "knowledge"},
            )
        )
    return found


def ranked(*cells: CellResult) -> list[Standing]:
    return standings(find(cells))


def rows(folder: Path, table: str) -> list[dict[str, str]]:
    content = (folder / "report/tables" / f"{table}.csv").read_bytes().decode()
    return list(csv.DictReader(io.StringIO(content, newline="")))


def read(folder: Path, name: str = "report.md") -> str:
    return (folder / "report" / name).read_text(encoding="utf-8")


def test_rules_are_ranked_by_the_worst_attack_after_the_mean_over_seeds() -> None:
    first, second = ranked(
        cell(0.9, rule="mean", attack="none", seed=1),
        cell(0.8, rule="mean", attack="none", seed=2),
        cell(0.1, rule="mean", attack="sign-flip", seed=1),
        cell(0.7, rule="mean", attack="sign-flip", seed=2),
        cell(0.8, rule="median", attack="none", seed=1),
        cell(0.8, rule="median", attack="none", seed=2),
        cell(0.5, rule="median", attack="sign-flip", seed=1),
        cell(0.5, rule="median", attack="sign-flip", seed=2),
    )
    assert (first.place, first.rule, first.worst, first.attacks) == (1, "median", 0.5, ("sign-flip",))
    assert (second.place, second.rule, second.worst) == (2, "mean", pytest.approx(0.4))
    assert second.honest == pytest.approx(0.85)
    assert second.mean == pytest.approx((0.85 + 0.4) / 2)


def test_the_worst_case_is_sought_over_all_other_settings_and_names_them() -> None:
    (only,) = ranked(
        cell(0.9, attack="zero", partition="iid"), cell(0.3, attack="zero", partition="dirichlet alpha=0.1")
    )
    assert (only.worst, only.settings, only.honest) == (0.3, "partition = dirichlet alpha=0.1", None)


def test_rules_with_the_same_worst_case_share_a_place_and_equally_bad_attacks_are_all_named() -> None:
    found = ranked(
        cell(0.5, rule="b", attack="x"), cell(0.5, rule="b", attack="y"), cell(0.5, rule="a", attack="x"),
        cell(0.6, rule="a", attack="y"), cell(0.1, rule="c", attack="x"), cell(0.6, rule="c", attack="y"),
    )  # fmt: skip
    assert [(s.place, s.rule) for s in found] == [(1, "a"), (1, "b"), (3, "c")]
    assert found[1].attacks == ("x", "y")


def test_an_incomplete_grid_is_told_and_so_is_the_rule_that_lacks_cells(tmp_path: Path) -> None:
    results = plausible(RULES[:2], ATTACKS[:3], PARTITIONS[:1], rounds=20)
    lacking = [r for r in results if (r.settings["rule"], r.settings["attack"]) != ("median", ATTACKS[1])]
    (whole, short) = sorted(standings(find(lacking)), key=lambda standing: standing.rule)
    assert (whole.missing, whole.cells, whole.expected) == ({}, 9, 9)
    assert (short.missing, short.cells, short.expected) == ({ATTACKS[1]: 3}, 6, 9)
    write_report(tmp_path, lacking, expected=18)
    assert "Incomplete: 15 of 18 cells are done" in read(tmp_path)
    assert re.search(r"^\| \d \| median\\\* \|.*\| 6 of 9 \|$", read(tmp_path), re.MULTILINE)
    assert rows(tmp_path, "missing") == [{"rule": "median", ATTACKS[1]: "3", "all": "3"}]
    write_report(tmp_path, lacking)
    assert "This report covers 15 cells. At least 3 are missing" in read(tmp_path)
    assert "median has the best worst case so far" in read(tmp_path)
    write_report(tmp_path, results, expected=18)
    assert "All 18 cells are done." in read(tmp_path)


@pytest.mark.filterwarnings("error")
def test_a_rule_without_a_cell_under_an_attack_leaves_its_field_and_its_line_out(tmp_path: Path) -> None:
    cells = [
        cell((0.1, 0.9), rule="a", attack="x"), cell((0.1, 0.9), rule="b", attack="x"),
        cell((0.1, 0.9), rule="b", attack="y"),
    ]  # fmt: skip
    write_report(tmp_path, cells)
    assert "Hatched: no cell is done." in read(tmp_path)
    assert "| y | – | 90.0 |" in read(tmp_path)


def test_an_attack_that_asks_for_no_knowledge_stands_beside_omniscient_and_blind_ones() -> None:
    findings = find(
        [
            cell(0.9, attack="none", attack__knowledge="none"),
            cell(0.5, attack="mimic", attack__knowledge="omniscient"),
            cell(0.6, attack="mimic", attack__knowledge="blind"),
        ]
    )
    labels = [condition.label for condition in findings.conditions]
    assert labels == ["attack.knowledge = blind", "attack.knowledge = omniscient"]
    assert [findings.mean(c, "mean", "none") for c in findings.conditions] == [0.9, 0.9]
    assert [findings.mean(c, "mean", "mimic") for c in findings.conditions] == [0.6, 0.5]
    assert standings(findings)[0].mean == pytest.approx((0.9 + 0.5 + 0.6) / 3)


def test_a_setting_that_only_follows_the_attack_or_the_number_of_liars_is_no_condition() -> None:
    results = [
        cell(0.9, attack="none", attack__knowledge="none", federation__malicious=m, federation__f=m)
        for m in (1, 2)
    ]
    results.append(cell(0.5, attack="mimic", attack__knowledge="blind"))
    assert find(results).varying == ("federation.malicious",)


def test_omniscient_and_blind_liars_are_compared_where_nothing_else_differs(tmp_path: Path) -> None:
    pairs = [
        cell(value, attack="mimic", attack__knowledge=knowledge, seed=seed)
        for knowledge, seed, value in (("omniscient", 1, 0.5), ("blind", 1, 0.75), ("omniscient", 2, 0.1))
    ]
    write_report(tmp_path, pairs)
    assert [list(row.values()) for row in rows(tmp_path, "knowledge")] == [
        ["mimic", "mean", "0.5", "0.75", "0.25", "1"]
    ]
    assert "| mimic | mean | 50.0 | 75.0 | +25.0 | 1 |" in read(tmp_path)


def test_scores_are_averaged_over_the_cells_that_have_them(tmp_path: Path) -> None:
    write_report(
        tmp_path,
        [
            cell(0.9, attack="none"),
            cell(0.9, attack="zero", seed=1, auc={"cosine": 0.5, "norm": 0.7}),
            cell(0.9, attack="zero", seed=2, auc={"cosine": 1.0, "norm": math.nan}),
        ],
    )
    assert rows(tmp_path, "scores") == [{"attack": "zero", "cosine": "0.75", "norm": "0.7", "cells": "2"}]
    assert "| zero | **0.750** | 0.700 | 2 |" in read(tmp_path)


def test_a_model_that_broke_is_counted_and_its_loss_kept(tmp_path: Path) -> None:
    write_report(tmp_path, [cell(0.1, loss=math.inf, skipped=3), cell(0.1, loss=math.nan, seed=2)])
    (row,) = rows(tmp_path, "troubles")
    assert (row["broken models"], row["rounds skipped"]) == ("2", "3")
    assert [r["loss"] for r in rows(tmp_path, "cells")] == ["inf", "nan"]


def test_values_in_csv_keep_every_digit_and_lines_end_as_the_standard_says(tmp_path: Path) -> None:
    write_report(tmp_path, [cell(0.1 + 0.2, rule='say "hi", twice')])
    content = (tmp_path / "report/tables/cells.csv").read_bytes()
    assert content.count(b"\n") == content.count(b"\r\n") == 2
    (row,) = rows(tmp_path, "cells")
    assert (row["accuracy"], row["rule"]) == ("0.30000000000000004", 'say "hi", twice')


def test_results_in_any_order_and_twice_give_the_same_bytes(tmp_path: Path) -> None:
    results = plausible(RULES[:3], ATTACKS[:3], PARTITIONS[:2], rounds=40)
    mixed = [*results, results[0]]
    random.Random(1).shuffle(mixed)
    first = write_report(tmp_path / "a", results)
    second = write_report(tmp_path / "b", mixed)
    assert [p.relative_to(tmp_path / "a") for p in first] == [p.relative_to(tmp_path / "b") for p in second]
    assert [p.name for p, q in zip(first, second, strict=True) if p.read_bytes() != q.read_bytes()] == []


def test_pictures_carry_no_date_and_no_name_of_a_program(tmp_path: Path) -> None:
    pictures = [path for path in write_report(tmp_path, [cell(0.5)]) if path.suffix == ".png"]
    assert len(pictures) == 2
    assert not any(word in p.read_bytes() for p in pictures for word in (b"tEXt", b"tIME", b"atplotlib"))


class Page(HTMLParser):
    """Which elements are open, and every attribute that could lead outside."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.targets: list[str] = []
        self.ids: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.targets += [value or "" for name, value in attrs if name in ("href", "src", "action", "srcset")]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_outside(tmp_path: Path) -> None:
    write_report(tmp_path, plausible(RULES[:2], ATTACKS[:2], PARTITIONS[:2], rounds=20))
    content = read(tmp_path, "report.html")
    page = Page(content)
    assert page.open == []
    assert "://" not in content
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in page.targets)
    assert {t[1:] for t in page.targets if t.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_every_link_of_the_markdown_leads_to_a_written_file_or_an_anchor(tmp_path: Path) -> None:
    written = write_report(tmp_path, plausible(RULES[:2], ATTACKS[:2], PARTITIONS[:2], rounds=20))
    content = read(tmp_path)
    targets = re.findall(r"\]\(([^)]+)\)", content)
    files = {tmp_path / "report" / target for target in targets if not target.startswith("#")}
    assert files == set(written) - {tmp_path / "report/report.md", tmp_path / "report/report.html"}
    assert all(path.is_file() for path in written)
    assert all(f'<a id="{target[1:]}">' in content for target in targets if target.startswith("#"))


HOSTILE = 'a<b> & c|d_e $1% {x} [y] \\z "q" *w* `v` #u ~t~ ^s --'


def test_labels_that_look_like_markup_break_no_file(tmp_path: Path) -> None:
    write_report(tmp_path, [cell(0.5, rule=HOSTILE, attack=HOSTILE, partition=p) for p in (HOSTILE, "iid")])
    page = read(tmp_path, "report.html")
    assert Page(page).open == []
    assert "<b>" not in page
    assert "<b>" not in read(tmp_path)
    (ranking,) = [line for line in read(tmp_path).splitlines() if line.startswith("| 1 |")]
    assert len(re.findall(r"(?<!\\)\|", ranking)) == 9
    assert rows(tmp_path, "ranking")[0]["rule"] == HOSTILE


def test_one_cell_alone_makes_a_report(tmp_path: Path) -> None:
    write_report(tmp_path, [cell(0.5)])
    assert "The worst case of mean is 50.0 %, under none." in read(tmp_path)
    assert "there is one seed, so no spread is known" in read(tmp_path)
    assert "±" not in read(tmp_path)
    assert "Overview" not in read(tmp_path)


def test_no_result_and_a_cell_that_lacks_something_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NoResults, match="expected at least 1"):
        write_report(tmp_path, [])
    with pytest.raises(UnusableResult, match="no evaluation"):
        write_report(tmp_path, [replace(cell(0.5), evaluations=())])
    with pytest.raises(UnusableResult, match="'seed'"):
        write_report(tmp_path, [replace(cell(0.5), settings={"rule": "mean", "attack": "none"})])
    assert list(tmp_path.iterdir()) == []


def test_the_number_of_liars_by_partition_is_drawn_where_both_vary(tmp_path: Path) -> None:
    both = [
        cell(0.9, partition=p, federation__malicious=m, federation__f=m)
        for p in ("iid", "shards shards=2")
        for m in (2, 10)
    ]
    name = "map-by-malicious-and-partition.png"
    assert name in [path.name for path in write_report(tmp_path / "a", both)]
    assert name not in [path.name for path in write_report(tmp_path / "b", both[::2])]
    table = rows(tmp_path / "a", "overview-by-malicious-and-partition")
    found = [(row["federation.malicious"], row["partition"]) for row in table]
    assert found == [("2", "iid"), ("2", "shards shards=2"), ("10", "iid"), ("10", "shards shards=2")]


def test_with_many_conditions_the_overview_comes_first_and_like_labels_have_files_of_their_own(
    tmp_path: Path,
) -> None:
    alike = [f"split {'!' * i}" for i in range(13)]
    written = write_report(tmp_path, [cell(0.9, partition=partition) for partition in alike])
    content = read(tmp_path)
    assert content.index("## Overview") < content.index("## Accuracy by partition")
    assert len([p for p in written if p.name.startswith("curves-partition-split")]) == 13
    assert len(set(written)) == len(written)


def test_more_rules_than_colours_are_drawn_in_several_pictures(tmp_path: Path) -> None:
    written = write_report(tmp_path, [cell(0.9, rule=f"rule-{i}") for i in range(9)])
    assert [p.name for p in written if "curves" in p.name] == [
        "curves-all-part-1.png",
        "curves-all-part-2.png",
    ]


def test_the_report_goes_where_it_is_told(tmp_path: Path) -> None:
    written = write_report(tmp_path / "grid", [cell(0.5)], tmp_path / "elsewhere")
    assert not (tmp_path / "grid").exists()
    assert written[0] == tmp_path / "elsewhere" / "report.md"
