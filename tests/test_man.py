"""The manual: complete, and nothing that man or mandoc complains about."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from rfaas import errors
from rfaas.admin.completion import commands_of
from rfaas.cli import EXIT_INTERRUPTED
from rfaas.commands import build_parser

TREE = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    """packaging/build_man.py; packaging/ is no package."""
    spec = importlib.util.spec_from_file_location("build_man", TREE / "packaging/build_man.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(builder: ModuleType) -> Iterator[dict[str, str]]:
    columns = os.environ.get("COLUMNS")
    os.environ["SOURCE_DATE_EPOCH"] = "1700000000"
    found: dict[str, str] = builder.pages()
    yield found
    del os.environ["SOURCE_DATE_EPOCH"]
    os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)


def exit_statuses() -> set[int]:
    kinds, found = [errors.RfaasError], set()
    while kinds:
        kind = kinds.pop()
        found.add(kind.exit_status)
        kinds += kind.__subclasses__()
    return found


def test_every_command_has_a_page_with_every_section(pages: dict[str, str]) -> None:
    commands = commands_of(build_parser())
    assert set(pages) == {"rfaas.1", *(f"rfaas-{command.name}.1" for command in commands)}
    sections = "NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "FILES", "ENVIRONMENT", "EXAMPLES"
    for name, text in pages.items():
        for section in (*sections, "SEE ALSO"):
            assert f"\n.SH {section}\n" in text, (name, section)
    for command in commands:
        text = pages[f"rfaas-{command.name}.1"].replace("\\-", "-")
        for word in command.flags:
            for flag in set(word.flags) - {"-h", "--help"}:
                assert f"\\fB{flag}\\fR" in text, (command.name, flag)


def test_every_command_has_an_example(builder: ModuleType) -> None:
    """Each of which its parser takes."""
    parser = build_parser()
    for command in commands_of(parser):
        assert builder.EXAMPLES[command.name], command.name
        for _, line in builder.EXAMPLES[command.name]:
            words = line.partition(" > ")[0].partition(")")[0].partition("rfaas ")[2].split()
            if line.startswith("scp"):
                continue
            assert parser.parse_args(words).command == command.name


def test_every_exit_status_is_explained(builder: ModuleType, pages: dict[str, str]) -> None:
    assert exit_statuses() | {0, EXIT_INTERRUPTED, 141} == set(builder.EXIT_STATUS)
    assert "\n.TP\n.B 78\nThe configuration is wrong.\n" in pages["rfaas-call.1"]


def test_the_same_tree_gives_the_same_pages(builder: ModuleType, pages: dict[str, str]) -> None:
    assert builder.pages() == pages
    assert '"2023-11-14"' in pages["rfaas.1"]


def test_man_has_nothing_to_complain_of(pages: dict[str, str], tmp_path: Path) -> None:
    man = shutil.which("man")
    if man is None:
        pytest.skip("man is not installed: apt-get install man-db")
    for name, text in pages.items():
        (tmp_path / name).write_text(text)
        run = subprocess.run(
            [man, "--warnings", "-E", "UTF-8", "-l", tmp_path / name],
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "MANWIDTH": "80"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stderr == "", name
        assert "EXIT STATUS" in run.stdout


def test_mandoc_has_nothing_to_complain_of(pages: dict[str, str], tmp_path: Path) -> None:
    mandoc = shutil.which("mandoc")
    if mandoc is None:
        pytest.skip("mandoc is not installed: apt-get install mandoc")
    for name, text in pages.items():
        (tmp_path / name).write_text(text)
        run = subprocess.run(
            [mandoc, "-T", "lint", "-W", "warning", tmp_path / name],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (run.returncode, run.stdout, run.stderr) == (0, "", ""), name
