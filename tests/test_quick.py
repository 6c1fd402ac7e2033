"""The quick reader of command lines means what argparse means, or leaves it to argparse."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfaas import quick
from rfaas.commands import build_parser

TREE = Path(__file__).resolve().parent.parent

PLAIN = [
    "call lib echo",
    "call lib echo -",
    "call lib echo in -o out --repeat 3 --stats",
    "call --executor unix:/x --set lane.slots=3 --set=lane.slot_bytes=1MiB lib echo in",
    "call --executor=unix:/x lib echo --cores 2",
    "serve --role executor",
    "serve --role all --config file --log-level debug",
    "serve --role executor --private-fd 5 --address unix:/x --node-cores 2",
]
NOT_PLAIN = [
    "",
    "call",
    "call lib",
    "call lib echo in more",
    "call lib --stats echo",
    "call lib echo -oout",
    "call lib echo --rep 3",
    "call lib echo --repeat x",
    "call lib echo --repeat -1",
    "call lib echo --stats=yes",
    "call lib echo -- -in",
    "call lib echo --set",
    "call --help",
    "serve",
    "serve --role nobody",
    "serve --role executor more",
    "nodes --json",
    "--version",
]
WORDS = [
    "-",
    "--",
    "-o",
    "--stats",
    "--repeat",
    "--repeat=2",
    "--cores",
    "2",
    "lib",
    "--set",
    "a=b",
]
WORDS += ["--role", "all", "--private-fd", "--config=x", "--he", "-x", ""]


@pytest.fixture(autouse=True, scope="module")
def table() -> Iterator[None]:
    """As the build fills it in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TREE / "packaging"))
        quick.TABLE.update(importlib.import_module("lean").table())
    yield
    quick.TABLE.clear()


@pytest.mark.parametrize("line", PLAIN)
def test_plain_lines_mean_the_same(line: str) -> None:
    found = quick.parse(line.split())
    assert found is not None
    assert vars(found) == vars(build_parser().parse_args(line.split()))


@pytest.mark.parametrize("line", NOT_PLAIN)
def test_everything_else_is_left_to_argparse(line: str) -> None:
    assert quick.parse(line.split()) is None


@given(st.sampled_from(quick.COMMANDS), st.lists(st.sampled_from(WORDS), max_size=7))
def test_whatever_is_read_argparse_reads_likewise(command: str, words: list[str]) -> None:
    found = quick.parse([command, *words])
    if found is not None:
        assert vars(found) == vars(build_parser().parse_args([command, *words]))


def test_defaults_are_nobodys_to_change() -> None:
    first = quick.parse(["call", "lib", "echo", "--set", "a=b"])
    second = quick.parse(["call", "lib", "echo"])
    assert first is not None
    assert second is not None
    assert (first.set, second.set) == (["a=b"], [])
