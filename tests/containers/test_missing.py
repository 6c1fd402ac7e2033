"""What the tests do on a machine that lacks what they run."""

from __future__ import annotations

from typing import cast

import pytest

from tests.harness import registry


class Options:
    """As `pytest.Config`, with one option."""

    def __init__(self, *, required: bool) -> None:
        self._required = required

    def getoption(self, name: str) -> bool:
        assert name == "--require-engines"
        return self._required


@pytest.mark.parametrize(
    ("required", "outcome"), [(False, pytest.skip.Exception), (True, pytest.fail.Exception)]
)
def test_program(required: bool, outcome: type[BaseException]) -> None:
    config = cast(pytest.Config, Options(required=required))
    registry.require(config, "sh")
    with pytest.raises(outcome, match="no-engine not installed: packaging/container-engines"):
        registry.require(config, "sh", "no-engine")
