"""`rfaas completion`: the shells' completion, made from the command line's parser.

Made when it is asked for, by this file alone: whatever form the program has, it
prints what its own parser takes, and carries nothing that could be out of date.
Files are completed where the parser says FILE, DIR, LIBRARY or INPUT.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import NamedTuple

FILES = ("FILE", "DIR", "LIBRARY", "INPUT")


class Word(NamedTuple):
    """One flag, or one positional argument (`flags` is empty)."""

    flags: tuple[str, ...]
    about: str
    value: str  # what stands for its value, "" where it takes none
    choices: tuple[str, ...]
    repeats: bool

    @property
    def files(self) -> bool:
        """Whether its value is a file's name."""
        return self.value in FILES and not self.choices


class Command(NamedTuple):
    """One subcommand."""

    name: str
    about: str
    words: tuple[Word, ...]

    @property
    def flags(self) -> list[Word]:
        return [word for word in self.words if word.flags]

    @property
    def positionals(self) -> list[Word]:
        return [word for word in self.words if not word.flags]


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion of `parser` for "bash", "zsh" or "fish"."""
    writer: Callable[[list[Command]], Iterator[str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}[
        shell
    ]
    return "\n".join(writer(commands_of(parser))) + "\n"


def commands_of(parser: argparse.ArgumentParser) -> list[Command]:
    """The subcommands of a parser."""
    (group,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    about = {action.dest: action.help or "" for action in group._choices_actions}
    return [
        Command(name, about[name], tuple(_word(action) for action in _shown(below)))
        for name, below in group.choices.items()
    ]


def _shown(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    return (action for action in parser._actions if action.help != argparse.SUPPRESS)


def _word(action: argparse.Action) -> Word:
    takes_value = action.nargs != 0
    name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    return Word(
        tuple(action.option_strings),
        (action.help or "").partition("%")[0],
        name if takes_value else "",
        tuple(map(str, action.choices or ())),
        isinstance(action, argparse._AppendAction),
    )


# bash -----------------------------------------------------------------------


def _bash(commands: list[Command]) -> Iterator[str]:
    names = [command.name for command in commands]
    yield "# bash completion of rfaas; made by `rfaas completion bash`"
    yield "_rfaas() {"
    yield '    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command="" i'
    yield "    # bash takes --flag=value apart into three words"
    yield '    if [[ $word == "=" ]]; then word=""'
    yield '    elif [[ $before == "=" ]]; then before=${COMP_WORDS[COMP_CWORD-2]}; fi'
    yield "    for ((i = 1; i < COMP_CWORD; i++)); do"
    yield "        case ${COMP_WORDS[i]} in"
    yield f"        {'|'.join(names)}) command=${{COMP_WORDS[i]}}; break ;;"
    yield "        esac"
    yield "    done"
    yield '    local flags="--help --version" words="" files=""'
    yield "    case $command in"
    yield f'    "") words="{" ".join(names)}" ;;'
    for command in commands:
        flags = " ".join(flag for word in command.flags for flag in word.flags)
        choices = " ".join(choice for word in command.positionals for choice in word.choices)
        files = "yes" if any(word.files for word in command.positionals) else ""
        yield f'    {command.name}) flags="{flags}" words="{choices}" files="{files}" ;;'
    yield "    esac"
    yield "    case $command,$before in"
    for command in commands:
        for word in command.flags:
            if word.value:
                pattern = "|".join(f"{command.name},{flag}" for flag in word.flags)
                files = "yes" if word.files else ""
                yield f'    {pattern}) flags="" words="{" ".join(word.choices)}" files="{files}" ;;'
    yield '    *) if [[ $word == -* ]]; then words=$flags files=""; fi ;;'
    yield "    esac"
    yield '    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")'
    yield "    if [[ $files ]]; then"
    yield "        compopt -o filenames 2>/dev/null"
    yield '        mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "$word")'
    yield "    fi"
    yield "}"
    yield "complete -F _rfaas rfaas rfaas.py"


# zsh ------------------------------------------------------------------------


def _zsh(commands: list[Command]) -> Iterator[str]:
    yield "#compdef rfaas rfaas.py"
    yield "# zsh completion of rfaas; made by `rfaas completion zsh`"
    yield "_rfaas() {"
    yield "    local state line"
    yield "    local -a commands"
    yield "    _arguments -C '(- *)'{-h,--help}'[show help]' '(- *)--version[show the version]' \\"
    yield "        '1:command:->command' '*::argument:->argument'"
    yield "    case $state in"
    yield "    command)"
    yield "        commands=("
    for command in commands:
        yield f"            {_zsh_quoted(f'{command.name}:{command.about}')}"
    yield "        )"
    yield "        _describe command commands ;;"
    yield "    argument)"
    yield "        case $line[1] in"
    for command in commands:
        yield f"        {command.name})"
        specs = [spec for word in command.words for spec in _zsh_specs(word)]
        yield "            _arguments \\"
        yield " \\\n".join(f"                {spec}" for spec in specs) + " ;;"
    yield "        esac ;;"
    yield "    esac"
    yield "}"
    yield "# completed from a file of $fpath, or sourced"
    yield 'if [[ $funcstack[1] == _rfaas ]]; then _rfaas "$@"'
    yield "else compdef _rfaas rfaas rfaas.py; fi"


def _zsh_specs(word: Word) -> Iterator[str]:
    value = ""
    if word.value:
        action = f"({' '.join(word.choices)})" if word.choices else "_files" if word.files else " "
        value = f":{word.value}:{action}"
    if not word.flags:
        yield _zsh_quoted(value)
    about = word.about.replace("[", "(").replace("]", ")").replace(":", "\\:")
    for flag in word.flags:
        others = "" if word.repeats else f"({' '.join(word.flags)})"
        yield _zsh_quoted(f"{'*' if word.repeats else others}{flag}[{about}]{value}")


def _zsh_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# fish -----------------------------------------------------------------------


def _fish(commands: list[Command]) -> Iterator[str]:
    yield "# fish completion of rfaas; made by `rfaas completion fish`"
    yield "complete -c rfaas -f"
    yield "complete -c rfaas -n __fish_use_subcommand -s h -l help -d 'show help'"
    yield "complete -c rfaas -n __fish_use_subcommand -l version -d 'show the version'"
    for command in commands:
        about = _fish_quoted(command.about)
        yield f"complete -c rfaas -n __fish_use_subcommand -a {command.name} -d {about}"
    for command in commands:
        inside = f"complete -c rfaas -n '__fish_seen_subcommand_from {command.name}'"
        for word in command.flags:
            flags = " ".join(
                f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
                for flag in word.flags
            )
            value = ""
            if word.value:  # -x: a value that is no file; -r -F: one that is
                value = " -r -F" if word.files else " -x"
                if word.choices:
                    value += f" -a {_fish_quoted(' '.join(word.choices))}"
            yield f"{inside} {flags}{value} -d {_fish_quoted(word.about)}"
        for word in command.positionals:
            if word.choices:
                yield f"{inside} -a {_fish_quoted(' '.join(word.choices))}"
        if any(word.files for word in command.positionals):
            yield f"{inside} -F"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
