"""ByzFL 0.0.11 and Flower 1.42.0 as libraries of aggregation functions, without all else they need.

`import byzfl` wants torchvision and `import flwr` a dozen services; neither matters to a rule, so
their own files are executed in place. They need NumPy, PyTorch and SciPy.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

BYZFL, FLOWER = "byzfl", "flwr"
VERSIONS = {BYZFL: "0.0.11", FLOWER: "1.42.0"}


class PeerMissing(ImportError):
    """A peer is not installed, or in another version than the one that is compared with."""


@cache
def byzfl() -> ModuleType:
    """ByzFL's aggregators and pre-aggregators by class name. Raises PeerMissing."""
    _register_byzfl()
    return importlib.import_module("byzfl.aggregators")


@cache
def byzfl_federation() -> ModuleType:
    """ByzFL's clients, server and attacks: its module byzfl.fed_framework. Raises PeerMissing."""
    _register_byzfl()
    # Its data distributor wants torchvision's data sets; nothing here distributes with it.
    return importlib.import_module("byzfl.fed_framework")


@cache
def flower() -> ModuleType:
    """Flower's module flwr.server.strategy.aggregate. Raises PeerMissing."""
    path = _folder(FLOWER) / "server" / "strategy" / "aggregate.py"
    spec = importlib.util.spec_from_file_location("flower_aggregate", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise PeerMissing(f"{path} is not there; {_way_out(FLOWER)}")
    module = importlib.util.module_from_spec(spec)
    with _flower_stubs():
        spec.loader.exec_module(module)
    return module


def _register_byzfl() -> None:
    """Make `byzfl` a package whose __init__ was never run, so that its parts import each other."""
    if "byzfl" not in sys.modules:
        sys.modules["byzfl"] = _package("byzfl", _folder(BYZFL))


@contextmanager
def _flower_stubs() -> Iterator[None]:
    """While it holds, `flwr.common` and `flwr.server.client_proxy` are modules with nothing but names."""
    stubs = {
        name: _package(name) for name in ("flwr", "flwr.common", "flwr.server", "flwr.server.client_proxy")
    }
    vars(stubs["flwr.common"]).update(
        FitRes=object, NDArray=np.ndarray, NDArrays=list, parameters_to_ndarrays=_unavailable
    )
    vars(stubs["flwr.server.client_proxy"]).update(ClientProxy=object)
    before = {name: sys.modules.get(name) for name in stubs}
    sys.modules.update(stubs)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _package(name: str, folder: Path | None = None) -> ModuleType:
    package = ModuleType(name)
    package.__path__ = [] if folder is None else [str(folder)]
    return package


def _unavailable(*_: Any) -> Any:
    raise NotImplementedError("Flower's messages are not loaded; call the functions that take arrays")


def _folder(name: str) -> Path:
    """Where a distribution's package of the same name lies; nothing of it is imported."""
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise PeerMissing(f"{name} is not installed; {_way_out(name)}") from None
    if distribution.version != VERSIONS[name]:
        raise PeerMissing(f"{name} is {distribution.version}, expected {VERSIONS[name]}; {_way_out(name)}")
    return Path(str(distribution.locate_file(name)))


def _way_out(name: str) -> str:
    return f"run scripts/setup dev, or pip install --no-deps {name}=={VERSIONS[name]}"
