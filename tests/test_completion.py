"""`rfaas completion`: asked of the shells themselves, where they are installed."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from rfaas.admin import completion
from rfaas.commands import build_parser

PATIENCE_S = 20.0

CASES = [
    ("rfaas comp", {"completion"}),
    ("rfaas serve --role ", {"resource-manager", "executor", "all"}),
    ("rfaas serve --role e", {"executor"}),
    ("rfaas config ", {"show", "check", "default"}),
    ("rfaas call --sl", {"--slots", "--slot-bytes"}),
    ("rfaas install --role r", {"resource-manager"}),
    ("rfaas call libm", {"libmine.so"}),
    ("rfaas call -o libm", {"libmine.so"}),
]

BASH = """
source "$1"
line=$2
read -ra COMP_WORDS <<<"$line"
[[ $line == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_rfaas
printf '%s\\n' "${COMPREPLY[@]}"
"""

# compadd is what all of zsh's completion ends in: wrapped, it tells what it was given.
ZSH = """
PS1='' PS2='' ; stty -echo
autoload -Uz compinit && compinit -u -D
source SCRIPT
compadd() {
    [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\\ * ]] && { builtin compadd "$@"; return $?; }
    local -a found
    builtin compadd -A found "$@"
    print -rl -- '<'${^found}'>' >>FOUND
    builtin compadd "$@"
}
_told() { : >FOUND; _main_complete; print -r -- '<<end>>' >>FOUND; }
zle -C told complete-word _told
bindkey '^I' told
print READY
"""


def needs(shell: str) -> str:
    """The shell's path, or a skip that says how to get it."""
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed: apt-get install {shell}")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where there is one file to complete; with every shell's script beside."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here/libmine.so").touch()
    for shell in ("bash", "zsh", "fish"):
        (tmp_path / shell).write_text(completion.script(build_parser(), shell))
    return tmp_path


def complete_bash(folder: Path, line: str) -> set[str]:
    run = subprocess.run(
        [needs("bash"), "--norc", "-uc", BASH, "bash", folder / "bash", line],
        cwd=folder / "here",
        check=True,
        capture_output=True,
        text=True,
    )
    assert run.stderr == ""
    return set(run.stdout.split())


def complete_fish(folder: Path, line: str) -> set[str]:
    run = subprocess.run(
        [needs("fish"), "--no-config", "-c", f"source ../fish; complete -C '{line}'"],
        cwd=folder / "here",
        env={**os.environ, "HOME": str(folder)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert run.stderr == ""
    return {line.partition("\t")[0] for line in run.stdout.splitlines()}


def complete_zsh(folder: Path, line: str) -> set[str]:
    zsh, found = needs("zsh"), folder / "found"
    rc = folder / ".zshrc"
    rc.write_text(ZSH.replace("SCRIPT", str(folder / "zsh")).replace("FOUND", str(found)))
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder / "here")
        environ = {"PATH": os.environ["PATH"], "TERM": "dumb", "ZDOTDIR": str(folder)}
        os.execve(zsh, ["zsh", "-d", "-i"], environ)
    try:
        give_up_at, output = time.monotonic() + PATIENCE_S, b""
        asked = False
        while not (found.exists() and "<<end>>" in found.read_text()):
            assert time.monotonic() < give_up_at, output
            if select.select([terminal], [], [], 0.01)[0]:
                output += os.read(terminal, 4096)
            if not asked and b"READY" in output:
                os.write(terminal, f"{line}\t".encode())
                asked = True
        return {word[1:-1] for word in found.read_text().split() if word != "<<end>>"}
    finally:
        os.close(terminal)  # hangs up: the shell goes
        os.waitpid(pid, 0)


@pytest.mark.parametrize(("line", "expected"), CASES)
def test_bash(folder: Path, line: str, expected: set[str]) -> None:
    assert complete_bash(folder, line) == expected


def test_bash_takes_an_equals_sign(folder: Path) -> None:
    """bash's own word breaks make three words of --role=e."""
    assert complete_bash(folder, "rfaas serve --role = e") == {"executor"}
    assert complete_bash(folder, "rfaas serve --role =") == {"resource-manager", "executor", "all"}


@pytest.mark.parametrize(("line", "expected"), CASES)
def test_fish(folder: Path, line: str, expected: set[str]) -> None:
    assert complete_fish(folder, line) == expected


@pytest.mark.slow  # a second each: zsh looks through all that it can complete
@pytest.mark.parametrize(("line", "expected"), CASES)
def test_zsh(folder: Path, line: str, expected: set[str]) -> None:
    assert complete_zsh(folder, line) == expected


def test_hidden_flags_stay_hidden() -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "private-fd" not in completion.script(build_parser(), shell)


def test_every_command_and_flag_is_there() -> None:
    for command in completion.commands_of(build_parser()):
        for shell in ("bash", "zsh", "fish"):
            text = completion.script(build_parser(), shell)
            assert command.name in text
            for flag in (flag for word in command.flags for flag in word.flags):
                assert (flag.lstrip("-") if shell == "fish" else flag) in text
