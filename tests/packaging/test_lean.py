"""What packaging/lean.py takes out of sources changes nothing that runs."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TREE = Path(__file__).resolve().parents[2]

TEXT = '''\
"""A module
of two lines."""

from __future__ import annotations

MARK = "# no comment"  # a comment
LINES = """
# no comment either
"""  # but this


class Ä(Exception): "nothing else"


def f(a=1):  # takes one
    """Says
    # something.
    """
    # then
    return f"{a}"  # ends
'''


@pytest.fixture
def lean(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(TREE / "packaging"))
    known = set(sys.modules)
    yield importlib.import_module("lean")
    for name in sys.modules.keys() & {"lean", "parts"} - known:
        del sys.modules[name]


def statements(text: str) -> list[str]:
    """Every node with its line, but for what docstrings say."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list) or not body or not isinstance(body[0], ast.Expr):
            continue
        said = body[0].value
        if isinstance(said, ast.Constant) and isinstance(said.value, str):
            said.value = ""
    return [f"{getattr(node, 'lineno', 0)} {ast.dump(node)}" for node in ast.walk(tree)]


def test_a_source_loses_docstrings_and_comments_and_no_line(lean: Any) -> None:
    bare = lean.bare(TEXT)
    assert statements(bare) == statements(TEXT)
    assert len(bare.splitlines()) == len(TEXT.splitlines())
    for gone in ("two lines", "a comment", "but this", "nothing else", "takes", "Says", "ends"):
        assert gone not in bare
    assert bare.count("# no comment") == 2


def test_every_module_of_ours_stays_what_it_is(lean: Any) -> None:
    for file in sorted((TREE / "rfaas").rglob("*.py")):
        text = file.read_text()
        assert statements(lean.bare(text)) == statements(text), file
