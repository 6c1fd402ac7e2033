"""The command lines that are read without argparse, which takes 5 ms of a start.

Only plain ones of a few commands, and only in the one-file programs: their build
fills TABLE from argparse's own parser (packaging/lean.py), so that there is one
description of the commands.  Whatever is not plain (help, a mistake, `-oFILE`,
abbreviations) is left to argparse; what is accepted here means the same there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

TYPE_CHECKING = False  # to type checkers it is True; `typing` itself costs 5 ms
if TYPE_CHECKING:
    import argparse
    from typing import Any

COMMANDS = ("call", "serve")

# By command: `defaults`, pairs of dest and value; `flags`, by name: dest, "store", "append" or
# "true", whether it is an integer, its choices; `positionals`, pairs of dest and whether it must
# be there; `required`, the dests of flags that must be there.
TABLE: dict[str, Any] = {}


class _NotPlainError(Exception):
    """argparse is to look at it."""


def parse(arguments: Sequence[str]) -> argparse.Namespace | None:
    """What argparse would return for these arguments; None where it has to be asked."""
    known = TABLE.get(arguments[0]) if arguments else None
    if known is None:
        return None
    values = {name: [] if value == [] else value for name, value in known["defaults"]}
    values["command"] = arguments[0]
    try:
        _take(values, known, iter(arguments[1:]))
    except _NotPlainError:
        return None
    namespace: Any = type(sys.implementation)  # types.SimpleNamespace, already there
    found: argparse.Namespace = namespace(**values)
    return found


def _take(values: dict[str, Any], known: dict[str, Any], words: Iterator[str]) -> None:
    positionals: list[str] = []
    given = set()
    runs = 0  # of positionals: argparse takes them apart strangely where flags stand between
    after_positional = False
    for word in words:
        is_positional = word == "-" or not word.startswith("-")
        if is_positional:
            runs += not after_positional
            positionals.append(word)
        else:
            given.add(_take_flag(values, known["flags"], word, words))
        after_positional = is_positional
    wanted = known["positionals"]
    if runs > 1 or not sum(must for _, must in wanted) <= len(positionals) <= len(wanted):
        raise _NotPlainError
    if not given.issuperset(known["required"]):
        raise _NotPlainError
    values.update(zip((dest for dest, _ in wanted), positionals, strict=False))


def _take_flag(
    values: dict[str, Any], flags: dict[str, Any], word: str, words: Iterator[str]
) -> str:
    flag, equals, text = word.partition("=") if word.startswith("--") else (word, "", "")
    dest, kind, is_integer, choices = flags.get(flag, ("", "", False, ()))
    if not kind or (kind == "true" and equals):
        raise _NotPlainError
    if kind == "true":
        values[dest] = True
        return str(dest)
    if not equals:
        text = next(words, "--")
        if text != "-" and text.startswith("-"):
            raise _NotPlainError
    if is_integer and not (text.isascii() and text.isdecimal()):
        raise _NotPlainError
    value = int(text) if is_integer else text
    if choices and value not in choices:
        raise _NotPlainError
    if kind == "append":
        values[dest].append(value)
    else:
        values[dest] = value
    return str(dest)
