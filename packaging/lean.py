"""What is changed in Python sources on the way into the one-file programs, to start faster.

msgspec: imports, nothing else, and in the zipapp alone.  `import msgspec` imports all of
itself, and with it what a start of ours has no use for: 4 ms of it, measured, where 15 are
the aim for all.  The version is pinned, and a source that is not as it is expected here
ends the build.

rfaas.quick: its table of commands, out of argparse's parser.

What is carried as source: no docstrings and comments, a third of it.
"""

from __future__ import annotations

import argparse
import ast
import io
import tokenize
from typing import Any

from parts import BuildError

from rfaas.commands import build_parser
from rfaas.quick import COMMANDS

_EMPTY_TABLE = "TABLE: dict[str, Any] = {}\n"

# Imported when they are asked for, as `from msgspec import json` does.
_SUBMODULES = "from . import inspect, json, msgpack, structs, toml, yaml\n"
_ON_DEMAND = """

def __getattr__(name):
    if name in ("inspect", "json", "msgpack", "structs", "toml", "yaml"):
        __import__("msgspec." + name)
        return globals()[name]
    raise AttributeError(name)


"""
# The native part asks for two types that no message or setting of ours has.  What it gets
# instead are types that no value is of; a later `import uuid` finds the real module.  For
# datetime all take what datetime.py takes, after it has made its own in vain (before 3.12).
_STAND_INS = """
import sys


class _Module:
    class Decimal: ...
    class UUID: ...
    class SafeUUID:
        unknown = None


_modules = {"decimal": _Module, "uuid": _Module}
try:
    import _datetime
    _modules["datetime"] = _datetime
except ImportError:
    pass
_modules = {name: module for name, module in _modules.items() if name not in sys.modules}
sys.modules.update(_modules)
try:
    from . import _core
finally:
    for _name in _modules:
        if _name != "datetime":
            del sys.modules[_name]
"""
# What it takes of it where it is there has been in `typing` since Python 3.11; to look for it and
# not find it takes 0.6 ms.  A node's own is used before that.
_EXTENSIONS = """
try:
    from typing_extensions import get_type_hints as _get_type_hints
except Exception:
    from typing import get_type_hints as _get_type_hints

try:
    from typing_extensions import NotRequired, Required
except Exception:
    try:
        from typing import NotRequired, Required
    except Exception:
        Required = NotRequired = None
"""
_OF_TYPING = """
from typing import get_type_hints as _get_type_hints
if sys.version_info >= (3, 11):
    from typing import NotRequired, Required
else:
    Required = NotRequired = None
"""
_SCHEMA = "from ._json_schema import schema, schema_components\n"

_CHANGES = {
    "msgspec": (
        (_SUBMODULES, _ON_DEMAND),
        ("from ._core import (\n", _STAND_INS + "from ._core import (\n"),
    ),
    "msgspec._utils": ((_EXTENSIONS, _OF_TYPING),),
    "msgspec.json": ((_SCHEMA, ""),),
}


def source_of(name: str, text: str) -> str:
    """The source of a carried module as it is compiled into the zipapp.

    Raises:
        BuildError: this version of the module is another one than this was written for.
    """
    changes = _CHANGES.get(name, ())
    if name == "rfaas.quick":
        changes = ((_EMPTY_TABLE, f"TABLE = {table()!r}\n"),)
    for old, new in changes:
        if text.count(old) != 1:
            raise BuildError(f"{name} is not what packaging/lean.py was written for")
        text = text.replace(old, new)
    return text


def bare(text: str) -> str:
    """A source without docstrings and comments; what is left stays on its line."""
    lines = text.encode().splitlines()  # the columns of a syntax tree are bytes
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            said = node.body[0]
            first, last = said.lineno - 1, (said.end_lineno or said.lineno) - 1
            rest = lines[last][said.end_col_offset :]
            # Not nothing: it may be all that the body has.
            lines[first : last + 1] = [
                lines[first][: said.col_offset] + b'""' + rest,
                *[b""] * (last - first),
            ]
    left = b"\n".join(lines).decode().split("\n")
    for token in tokenize.generate_tokens(io.StringIO("\n".join(left) + "\n").readline):
        if token.type == tokenize.COMMENT:
            line, column = token.start
            left[line - 1] = left[line - 1][:column].rstrip()
    return "\n".join(left) + "\n"


def table() -> dict[str, Any]:
    """rfaas.quick.TABLE."""
    (commands,) = (
        action
        for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return {command: _row(commands.choices[command]) for command in COMMANDS}


def _row(parser: argparse.ArgumentParser) -> dict[str, Any]:
    flags: dict[str, tuple[str, str, bool, tuple[str, ...]]] = {}
    positionals: list[tuple[str, bool]] = []
    defaults: list[tuple[str, object]] = []
    required = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue  # argparse's
        kind = _KINDS.get(type(action), "")
        one = action.nargs is None or kind == "true" or not action.option_strings
        if not kind or not one or action.type not in (None, int):
            raise BuildError(f"packaging/lean.py knows no flag such as {action}")
        defaults.append((action.dest, action.default))
        row = (action.dest, kind, action.type is int, tuple(action.choices or ()))
        flags.update(dict.fromkeys(action.option_strings, row))
        if not action.option_strings:
            positionals.append((action.dest, action.nargs is None))
        elif action.required:
            required.append(action.dest)
    return {
        "defaults": defaults,
        "flags": flags,
        "positionals": positionals,
        "required": required,
    }


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_KINDS: dict[type[argparse.Action], str] = {
    argparse._StoreAction: "store",
    argparse._AppendAction: "append",
    argparse._StoreTrueAction: "true",
}
