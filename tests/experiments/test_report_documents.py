"""Text of any kind passes through Markdown, HTML and CSV unchanged; LaTeX marks the best value of a row."""

from __future__ import annotations

import csv
import io
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from folkmoot.experiments.report.canvas import Range, accuracy_range, wrap
from folkmoot.experiments.report.document import (
    Document,
    Entry,
    Names,
    Section,
    Table,
    mark_best,
    number,
    words,
)
from folkmoot.experiments.report.files import csv_text, escape_latex, latex_text
from folkmoot.experiments.report.findings import ordered
from folkmoot.experiments.report.heat_maps import _contrast
from folkmoot.experiments.report.markdown import markdown
from folkmoot.experiments.report.web import web

LABELS = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1).filter(str.strip)


class FirstRow(HTMLParser):
    """The text in the first field of the body of the first table."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text: list[str] = []
        self.place = ""
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.place += f"/{tag}"

    def handle_endtag(self, tag: str) -> None:
        self.place += f"/end-{tag}"

    def handle_data(self, data: str) -> None:
        if self.place.endswith(("/tbody/tr/th", "/tbody/tr/td")):
            self.text.append(data)


def one_field(label: str) -> Document:
    table = Table("t", "caption", ("rule",), ((words(label),),))
    return Document("title", (), (Section("s", "s", (table,)),))


@given(LABELS)
def test_markdown_shows_a_label_as_it_is(label: str) -> None:
    html = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown(one_field(label)))
    assert "".join(FirstRow(html).text) == " ".join(label.split())


@given(LABELS)
def test_html_shows_a_label_as_it_is(label: str) -> None:
    assert "".join(FirstRow(web(one_field(label))).text) == label


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1), st.floats(allow_nan=False))
def test_csv_is_read_back_as_it_was(labels: list[str], value: float) -> None:
    columns = tuple(str(place) for place in range(len(labels) + 1))
    table = Table("t", "", columns, ((*map(words, labels), Entry("shown", value)),))
    head, row = csv.reader(io.StringIO(csv_text(table), newline=""))
    assert head == list(columns)
    assert row[:-1] == labels
    assert float(row[-1]) == value


def test_what_latex_would_obey_is_escaped() -> None:
    assert escape_latex(r"50% of a_b & c \ {d} #1 $x$ ~ ^") == (
        r"50\% of a\_b \& c \textbackslash{} \{d\} \#1 \$x\$ \textasciitilde{} \textasciicircum{}"
    )
    assert escape_latex("a<b>|c ---") == "a$<$b$>$$|$c -{}-{}-"
    assert escape_latex("[x] *") == "{[}x] {*}"


def test_latex_prints_the_best_of_a_row_bold_and_loads_booktabs_alone() -> None:
    table = Table(
        "t", "All of it", ("attack", "mean", "trimmed-mean with a long name"),
        ((words("zero"), *mark_best([number(0.5, 1, 100), number(0.75, 1, 100)])),), note="A note.",
    )  # fmt: skip
    lines = latex_text(table).splitlines()
    assert lines[0] == r"% Needs \usepackage{booktabs}."
    assert r"\begin{tabular}{lrr}" in lines
    assert r"zero & 50.0 & \textbf{75.0} \\" in lines
    assert r"\begin{tabular}[b]{@{}r@{}}trimmed-mean\\with a long\\name\end{tabular}" in "\n".join(lines)


def test_what_is_shown_alike_is_equally_good_and_a_single_value_is_not_the_best() -> None:
    assert [e.best for e in mark_best([number(v, 1, 100) for v in (0.90001, 0.9, 0.2, None)])] == [
        True, True, False, False,
    ]  # fmt: skip
    assert not any(e.best for e in mark_best([number(0.9, 1, 100), number(None, 1)]))


def test_zero_has_no_sign() -> None:
    assert [number(v, 1, 100, "+").text for v in (-0.0001, 0.0, 0.1, -0.1)] == [
        "0.0",
        "0.0",
        "+10.0",
        "-10.0",
    ]


def test_partitions_go_from_even_to_uneven_and_numbers_in_labels_count() -> None:
    partitions = ["dirichlet alpha=0.1", "iid", "dirichlet alpha=10", "shards shards=2", "dirichlet alpha=1"]
    assert ordered("partition", partitions) == (
        "iid", "dirichlet alpha=10", "dirichlet alpha=1", "dirichlet alpha=0.1", "shards shards=2",
    )  # fmt: skip
    honest = [f"{partition} among=honest" for partition in partitions]
    assert ordered("partition", honest) == tuple(
        f"{partition} among=honest" for partition in ordered("partition", partitions)
    )
    assert ordered("rule", ["clip tau=10", "clip tau=2", "average"]) == (
        "average",
        "clip tau=2",
        "clip tau=10",
    )
    assert ordered("attack", ["alie", "none"]) == ("none", "alie")
    assert ordered("lattice.bits", [16, 8, 32]) == (8, 16, 32)


def test_no_two_labels_get_the_same_name() -> None:
    names = Names()
    assert [names.of(label) for label in ("A/B", "a b", "../..", "…", "x" * 200)] == [
        "a-b", "a-b-2", "all", "all-2", "x" * 80,
    ]  # fmt: skip


def test_pictures_share_a_range_of_whole_tens() -> None:
    assert accuracy_range([0.12, 0.97]) == Range(10, 100)
    assert accuracy_range([0.5]) == Range(50, 60)
    assert accuracy_range([0.0, 1.0]) == Range(0, 100)


def test_numbers_are_black_on_light_and_white_on_dark() -> None:
    assert _contrast((1, 1, 0.2, 1)) == "black"
    assert _contrast((0, 0.1, 0.3, 1)) == "white"


def test_long_labels_are_wrapped_at_hyphens_and_spaces() -> None:
    assert wrap("inner-product strength=0.5", 13) == "inner-product\nstrength=0.5"
