"""What holds for every test of the aggregation: small inputs too run on as many threads as asked for."""

from __future__ import annotations

import pytest

from folkmoot.aggregation import passes


@pytest.fixture(autouse=True)
def _threads_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_LEAST_EFFORT", 1)
