"""What the tests of the one file get."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packaging.built import binary, program
from tests.packaging.one_file import Copy

__all__ = ["binary", "copy", "program"]

BUILD_PATIENCE_S = 600


@pytest.fixture
def copy(program: Path, tmp_path: Path) -> Copy:
    """A copy in a directory of its own."""
    return Copy(program, tmp_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that takes a program waits for its build: minutes on a busy machine."""
    for item in items:
        if {"program", "binary"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.timeout(BUILD_PATIENCE_S), append=False)
