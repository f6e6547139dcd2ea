"""`folkmoot experiment` from the command line: what it says, what it writes, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from folkmoot.node.cli import execute
from folkmoot.node.errors import ExitCode

TINY = """
[data]
set = "digits"
[model]
name = "linear"
[training]
steps = 1
batch = 16
lr = 0.5
[federation]
members = 6
malicious = 1
rounds = 3
[rule]
name = ["median", "mean"]
[attack]
name = ["sign-flip", "none"]
"""

SEARCHED = (
    TINY
    + """
[search]
objective = "honest"
sampler = "random"
trials = 2
[search.space]
"training.lr" = { low = 0.1, high = 1.0, log = true }
"""
)


@pytest.fixture(autouse=True)
def _a_terminal_without_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return written(tmp_path, TINY)


def written(folder: Path, text: str) -> Path:
    path = folder / "grid.toml"
    path.write_text(text)
    return path


def experiment(*arguments: object) -> int:
    return execute(["experiment", *map(str, arguments)])


def test_a_dry_run_counts_the_cells_and_writes_nothing(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiment("run", tiny, "--out", tmp_path / "out", "--dry-run") == ExitCode.DONE
    assert capsys.readouterr().out == "4 cells, 0 of them done\n"
    assert not (tmp_path / "out").exists()


def test_a_run_is_told_as_a_document_and_the_dry_run_after_it_knows_what_is_done(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert experiment("run", tiny, "--out", out, "--workers", 1, "--json") == ExitCode.DONE
    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["cells"], told["done"], told["failures"]) == ("grid", 4, 4, [])
    assert {place["rule"] for place in told["ranking"]} == {"median", "mean"}
    assert told["ranking"] == sorted(told["ranking"], key=lambda place: -place["worst"])
    assert (out / "grid.toml").read_bytes() == tiny.read_bytes()

    assert experiment("run", tiny, "--out", out, "--dry-run", "--json") == ExitCode.DONE
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [cell["done"] for cell in cells] == [True] * 4
    lines = [json.loads(line)["cell"] for line in (out / "results.jsonl").read_text().splitlines()]
    assert [cell["cell"] for cell in cells] == lines

    assert experiment("run", tiny, "--out", out) == ExitCode.DONE
    assert "4 of 4 cells are done" in capsys.readouterr().out


FAILING = """
from torch import nn

class Failing(nn.Linear):
    def forward(self, examples):
        if len(examples) > 8:
            raise RuntimeError("this network takes few examples")
        return super().forward(examples)

def build(shape, classes):
    return Failing(shape[0], classes)

def wrong(shape, classes):
    raise KeyError("no such thing")

def number(shape, classes):
    return 1

def dropping(shape, classes):
    return nn.Sequential(nn.Linear(shape[0], classes), nn.Dropout(0.5))

def narrow(shape, classes):
    return nn.Linear(shape[0] - 1, classes)
"""


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a model whose training fails."""
    (tmp_path / "network_that_fails.py").write_text(FAILING)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "network_that_fails:build"


def test_a_cell_that_fails_makes_the_run_fail_and_keeps_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], failing: str
) -> None:
    one_of_two = TINY.replace('name = "linear"', f'name = ["linear", "{failing}"]').replace(
        'name = ["sign-flip", "none"]', 'name = "none"'
    )
    grid = written(tmp_path, one_of_two)
    assert experiment("run", grid, "--out", tmp_path / "out", "--workers", 1) == ExitCode.FAILED
    said = capsys.readouterr().out
    assert "2 of 4 cells are done" in said
    assert "2 failed, such as" in said
    assert "this network takes few examples" in said
    assert len(list((tmp_path / "out").glob("cells/*.json"))) == 2


@pytest.mark.parametrize("command", ["run", "search", "network"])
@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (('name = "linear"', 'name = "network_that_fails:wrong"'), "KeyError: 'no such thing'"),
        (('name = "linear"', 'name = "network_that_fails:number"'), "makes a int, not a torch.nn.Module"),
        (('name = "linear"', 'name = "network_that_fails:dropping"'), "models.Dropout"),
        (('name = "linear"', 'name = "network_that_fails:narrow"'), "does not train: RuntimeError: "),
        (
            ('name = "linear"', 'name = "lenet"'),
            "a convolutional model needs images (channels, height, width)",
        ),
        (('set = "digits"', 'set = "mnist"'), "mnist needs a folder that holds its files; get the four IDX"),
        (('"sign-flip", "none"]', '"backdoor", "none"]\nparams.size = 9'), "size is 9, expected 1 to 8"),
        (("[model]", '[partition]\nkind = "shards"\nshards = 999\n[model]'), "digits, shards shards=999: "),
    ],
)
def test_cells_that_do_not_fit_their_data_are_refused_before_anything_runs(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    wrong: tuple[str, str],
    complaint: str,
    failing: str,
) -> None:
    text = SEARCHED.replace(*wrong)
    if "backdoor" in text:
        text = text.replace('["backdoor", "none"]', '"backdoor"').replace('objective = "honest"', "")
    out = tmp_path / "out"
    assert experiment(command, written(tmp_path, text), "--out", out) == ExitCode.USAGE
    assert complaint in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("command", ["run", "search", "network"])
@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (("lr = 0.5", "rate = 0.5"), "grid.toml: unknown key [training] 'rate'; known: batch"),
        (('"mean"]', '"bulyan"]'), "grid.toml: bulyan with f = 1 needs 7 members, found 6"),
        (('name = "linear"', 'name = "resnet"'), "grid.toml: no model 'resnet'; known: linear"),
        (("[data]", "[data"), "grid.toml: "),
    ],
)
def test_a_file_that_cannot_be_run_is_wrong_usage_before_anything_runs(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    wrong: tuple[str, str],
    complaint: str,
) -> None:
    grid = written(tmp_path, SEARCHED.replace(*wrong))
    assert experiment(command, grid, "--out", tmp_path / "out") == ExitCode.USAGE
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert experiment("run", tmp_path / "absent.toml", "--out", tmp_path / "out") == ExitCode.USAGE
    assert "absent.toml: No such file" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_wrong_usage(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiment("run", tiny, "--out", tiny / "out", "--workers", 1) == ExitCode.USAGE
    assert "cannot write into" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [("run", "grid.toml"), ("run", "grid.toml", "--out", "o", "--workers", "0"), ("race",), ("search",)],
)
def test_a_command_line_that_is_wrong_is_wrong_usage(arguments: tuple[str, ...]) -> None:
    assert experiment(*arguments) == ExitCode.USAGE


@pytest.mark.parametrize("name", ["", "run", "search", "report", "network"])
def test_every_command_helps_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert experiment(*name.split(), "--help") == ExitCode.DONE
    said = capsys.readouterr().out
    assert f"folkmoot experiment {name}".strip() in said.partition("Example:")[2]


def test_a_search_writes_its_findings_and_goes_on_without_running_a_cell_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, out = written(tmp_path, SEARCHED), tmp_path / "out"
    assert experiment("search", grid, "--out", out, "--workers", 1, "--json") == ExitCode.DONE
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((out / "search.json").read_text())
    assert {rule["rule"]: len(rule["trials"]) for rule in told["rules"]} == {"median": 2, "mean": 2}
    for rule in told["rules"]:
        assert rule["accuracy"] == max(trial["accuracy"] for trial in rule["trials"])
    times = (out / "times.jsonl").read_text()
    assert len(times.splitlines()) == 2 * 2 * 2
    assert experiment("search", grid, "--out", out, "--workers", 1) == ExitCode.DONE
    assert (out / "times.jsonl").read_text() == times
    assert "Best of the trials" in capsys.readouterr().out


def test_a_grid_without_a_search_cannot_be_searched(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiment("search", tiny, "--out", tmp_path / "out") == ExitCode.USAGE
    assert "grid.toml: the file has no [search]" in capsys.readouterr().err


def test_a_trial_that_fails_ends_the_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], failing: str
) -> None:
    grid = written(tmp_path, SEARCHED.replace('name = "linear"', f'name = "{failing}"'))
    assert experiment("search", grid, "--out", tmp_path / "out", "--workers", 1) == ExitCode.FAILED
    assert "this network takes few examples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (('name = ["median", "mean"]', 'name = "median"\npre = ["bucketing:s=2"]'), "take another rule"),
        (('"sign-flip", "none"', '"nan"'), "a real node refuses to send what nan makes"),
        (('"sign-flip", "none"', '"infinity"'), "a real node refuses to send what infinity makes"),
        (("members = 6", "members = 3"), "at least 4 members, found 3"),
        (("lr = 0.5", 'lr = 0.5\ndevice = "cuda"'), 'members train on "cpu"'),
    ],
)
def test_a_cell_that_real_nodes_cannot_run_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], complaint: str
) -> None:
    grid = written(tmp_path, TINY.replace(*change))
    assert experiment("network", grid, "--out", tmp_path / "out") == ExitCode.USAGE
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_federation_needs_an_empty_folder(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiment("network", tiny, "--out", tmp_path) == ExitCode.USAGE
    assert "is not empty; name another with --out" in capsys.readouterr().err


def test_a_cell_that_the_grid_does_not_have_is_wrong_usage(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("network", tiny, "--cell", "0123456789abcdef", "--out", tmp_path / "out")
    assert experiment(*arguments) == ExitCode.USAGE
    assert "the grid has no cell 0123456789abcdef" in capsys.readouterr().err
