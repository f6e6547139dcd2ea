"""A configuration means what it says, and says where it is wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.node.config import load, parse, render, render_default
from folkmoot.node.errors import ConfigError, ExitCode, HomeMissing, exit_code_of
from folkmoot.node.settings import Config

HOME = Path("/home/of/node")


def uncommented(text: str) -> str:
    """The default file with every commented option switched on."""
    lines = [line[2:] if line.startswith("# ") and " = " in line else line for line in text.splitlines()]
    return "\n".join(lines)


def test_the_default_file_loads_as_the_defaults() -> None:
    assert parse(render_default(), HOME) == parse("", HOME)


def test_switching_on_every_commented_option_changes_only_those_that_are_off_by_default() -> None:
    text = uncommented(render_default())
    config, default = parse(text, HOME), parse("", HOME)
    assert len(tomllib.loads(text)["chain"]) == 6
    assert config.chain.chain_id == 31_337
    assert config.store.kubo == "http://127.0.0.1:5001"
    assert (config.network, config.limits, config.log, config.node) == (
        default.network,
        default.limits,
        default.log,
        default.node,
    )


def test_every_option_is_explained_in_the_default_file() -> None:
    lines = render_default().splitlines()
    for number, line in enumerate(lines):
        if " = " in line:
            assert lines[number - 1].startswith("# ")
            assert lines[number - 1].endswith(".")


def test_values_arrive_typed() -> None:
    config = parse(
        """
        [chain]
        rpc = "https://chain.example.org"
        poll_seconds = 2
        [store]
        path = "/mnt/blobs"
        capacity = "3 MiB"
        [node]
        owner = "../safe/owner.json"
        [network]
        listen = ["/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/4001"]
        peers = ["/dns4/a.example.org/tcp/4001/p2p/12D3KooWA1WNKQqcqRmQXdzT9bhfBiXkXaEHPGGgcDXBRuhBSUEj"]
        [task]
        join = [1, 7]
        [trainer]
        factory = "my_hospital.training:make"
        options = {folder = "/data", depth = 3}
        """,
        HOME,
    )
    assert config.chain.poll_seconds == 2.0
    assert config.store.path == Path("/mnt/blobs")
    assert config.store.capacity == 3 << 20
    assert config.node.owner == HOME / "../safe/owner.json"
    assert config.network.listen == ("/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/4001")
    assert len(config.network.peers) == 1
    assert config.task.join == (1, 7)
    assert dict(config.trainer.options) == {"folder": "/data", "depth": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[node]\n\n[chain]\nrcp = "x"', "line 4: unknown option rcp in [chain]: did you mean rpc?"),
        ("# x\n[chian]\n", "line 2: unknown section [chian]: did you mean chain?"),
        ("[zzz]", "there are node, chain, network"),
        ("[node]\nname = 7", "line 2: node.name is 7, expected a text"),
        ("chain = 3", "line 1: chain is a section"),
        ("[[chain]]\nrpc = 'http://a'", "line 1: chain is a section"),
        ('chain.rpc = "localhost"', 'line 1: chain.rpc is "localhost", expected an address as'),
        ('[chain]\nrpc = "http://a:99999"', "line 2: chain.rpc"),
        ('[chain]\nrpc = "file:///etc/passwd"', "line 2: chain.rpc"),
        ("[chain]\nconfirmations = -1", "expected a whole number from 0 to 60"),
        ("[chain]\nconfirmations = true", "expected a whole number"),
        ("[chain]\npoll_seconds = nan", "expected seconds from 0.05 to 3600"),
        ('[chain]\n"poll_seconds" = 0', "line 2: chain.poll_seconds is 0"),
        ('[limits]\nupdate = "3 GB"', 'limits.update is "3 GB", expected a size as "512 MiB"'),
        ('[limits]\nupdate = "0 GiB"', "expected a size"),
        ("[network]\nlisten = 4001", 'expected a list of addresses as ["/ip4/0.0.0.0/tcp/4001"]'),
        ('[network]\nlisten = ["/ip4/0.0.0.0/udp/1"]', "expected a list of addresses"),
        ('[network]\npeers = ["/ip4/1.2.3.4/tcp/1"]', "line 2: network.peers"),
        ("[network]\npublish_address = 1", "expected true or false"),
        ('[task]\njoin = "some"', 'expected "all", or a list of task numbers'),
        ("[task]\njoin = [true]", "expected"),
        ('[trainer]\nfactory = "os.system"', 'expected a factory as "package.module:name"'),
        ("[trainer]\noptions = 3", "line 2: trainer.options is 3, expected a table"),
        ('[log]\nlevel = "loud"', "line 2: log.level"),
        ('[node]\nwork = ""', "expected a path"),
        ("[node]\nname = \nwork = 'x'", "line 2: Invalid value (column 8)"),
        ("[node]\nwork = '~nobody-of-that-name/x'", "line 2: node.work"),
        ("[node]\nname = 'a'\nname = 'b'", "Cannot overwrite"),
        ("[node]\nname = [", "end of"),
        pytest.param("[limits]\nthreads = " + "9" * 5000, "Exceeds the limit", id="5000 digits"),
        pytest.param("[trainer.options]\na = " + "[" * 5000, "node/config.toml, ", id="5000 brackets"),
    ],
)
def test_what_is_wrong_is_refused_with_its_line_and_the_way_out(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, HOME, "node/config.toml")
    assert str(caught.value).startswith("node/config.toml, ")
    assert message in str(caught.value)
    assert exit_code_of(caught.value) is ExitCode.USAGE


def test_the_same_key_in_another_table_does_not_mislead_the_line() -> None:
    text = "[trainer.options]\nupdate = 1\n\n[store]\npath = 'x'\n\n[limits]\nupdate = 1\n"
    with pytest.raises(ConfigError, match=r"line 8: limits\.update"):
        parse(text, HOME)


def test_a_missing_file_and_a_binary_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(HomeMissing, match="folkmoot init"):
        load(tmp_path / "config.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path)
    (tmp_path / "config.toml").write_bytes(b"[node]\n# \xff\n")
    with pytest.raises(ConfigError, match="line 2: not UTF-8"):
        load(tmp_path / "config.toml")


def test_paths_start_at_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(render_default())
    assert load(tmp_path / "config.toml").store.path == tmp_path / "blobs"


JSON = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(options=st.dictionaries(st.text(max_size=12), JSON, max_size=5), name=st.text(max_size=30))
def test_what_is_rendered_is_read_back(options: dict[str, object], name: str) -> None:
    chosen = {
        "node": {"name": name},
        "trainer": {"factory": "a.b:c", "options": options},
        "network": {"listen": ["/ip4/127.0.0.1/tcp/4321"]},
    }
    config = parse(render(chosen), HOME)
    assert config.node.name == name
    assert dict(config.trainer.options) == options
    assert config.network.listen == ("/ip4/127.0.0.1/tcp/4321",)


@pytest.mark.parametrize(
    "chosen",
    [
        {"chian": {"rpc": "http://a"}},
        {"chain": {"rcp": "http://a"}},
        {"chain": {"rpc": 7}},
        {"node": {"name": None}},
    ],
)
def test_nothing_that_would_be_refused_is_rendered(chosen: dict[str, dict[str, object]]) -> None:
    with pytest.raises(ConfigError):
        render(chosen)


@given(text=st.text(max_size=200))
def test_any_text_is_read_or_refused_by_name(text: str) -> None:
    try:
        config = parse(text, HOME)
    except ConfigError:
        return
    assert isinstance(config, Config)
