"""What the tests of the one file get."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packaging.built import binary, program
from tests.packaging.one_file import Copy

__all__ = ["binary", "copy", "program"]


@pytest.fixture
def copy(program: Path, tmp_path: Path) -> Copy:
    """A copy in a directory of its own."""
    return Copy(program, tmp_path)
