"""docs/install.md and the README's part about one file: what they say is so."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from rfaas import config
from rfaas.admin import units
from rfaas.commands import build_parser

TREE = Path(__file__).resolve().parent.parent
PAGE = (TREE / "docs/install.md").read_text()
README = (TREE / "README.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The arguments of every command of ours in blocks of shell."""
    found = []
    for line in "".join(blocks(text, "sh")).splitlines():
        plain = line.partition(" #")[0].partition(" >")[0]
        if plain.startswith("scp "):
            continue
        if match := re.search(r"(?:^|\s)(?:\./|dist/)?rfaas(?:-site)? (.*)$", plain):
            found.append(shlex.split(match[1]))
    return found


@pytest.mark.parametrize("text", [PAGE, README], ids=["install.md", "readme"])
def test_every_command_is_one(text: str) -> None:
    found = commands(text)
    assert len(found) >= 2
    for arguments in found:
        assert build_parser().parse_args(arguments).command == arguments[0]


def test_every_exit_status_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TREE / "packaging"))
    statuses: dict[int, str] = importlib.import_module("build_man").EXIT_STATUS
    rows = dict(re.findall(r"^\| (\d+) \| (.*) \|$", PAGE, re.MULTILINE))
    assert rows == {
        str(number): text[0].lower() + text[1:].rstrip(".") for number, text in statuses.items()
    }


def test_the_example_of_hosts_gives_what_it_shows(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text(blocks(PAGE, "toml")[0])
    memory = {
        host: config.load(str(file), {}, host=host).config.executor.memory
        for host in ("login1", "gpu-01", "gpu-07.example.org")
    }
    assert memory == {"login1": 64 << 30, "gpu-01": 256 << 30, "gpu-07.example.org": 192 << 30}
    assert f"executor.memory   {192 << 30}   embedded in rfaas-site, host" in PAGE


def test_units_are_described_as_they_are() -> None:
    text = units.unit("executor", ["/usr/local/bin/rfaas"])
    assert "RestartPreventExitStatus=2 65 78" in text
    assert "(exit statuses 2, 65 and 78)" in PAGE
    for path in (units.RUNTIME_DIR, units.STATE_DIR):
        assert f"`{path}`" in PAGE
