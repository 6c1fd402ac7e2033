"""What is said about the configuration: faults, the table of values, the default file.

Apart from `config.py`, which decides; nothing here does.  The texts are made from
the declarations, not from the validator's messages, so that people can rely on them.
"""

from __future__ import annotations

import os
from math import isnan
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from msgspec import Meta, Struct

from rfaas.errors import near
from rfaas.units import format_bytes

if TYPE_CHECKING:
    from rfaas.config import Loaded

_SHOWN_CHARACTERS_MAX = 80
_NOUNS: dict[object, str] = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "a table",
}


class Key(Struct, frozen=True):
    """One key's declaration, taken apart for reading texts and explaining faults.

    `words` are the texts that are allowed: beside `base`, or alone where it is None.
    """

    hint: Any
    base: type | None
    meta: Meta
    words: tuple[str, ...]

    @property
    def form(self) -> str:
        """`size`, `address`, or "" where the type says it all."""
        form: str = (self.meta.extra or {}).get("form", "")
        return form

    @property
    def allowed(self) -> str:
        """The pattern that the whole text must fit, "" where any does."""
        allowed: str = (self.meta.extra or {}).get("allowed", "")
        return allowed


def key_of(hint: Any) -> Key:
    """The declaration in a type: an `Annotated`, a `Literal`, or a union of both."""
    base: type | None = None
    meta, words = Meta(), ()
    for part in get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,):
        if get_origin(part) is Literal:
            words = get_args(part)
        elif get_origin(part) is Annotated:
            base, meta = get_args(part)
    return Key(hint, base, meta, words)


def fault(key: Key, value: object) -> tuple[str, str]:
    """What is wrong with a value that its declaration refused, and a hint or ""."""
    base, meta = key.base, key.meta
    if base is None and isinstance(value, str):
        allowed = ", ".join(key.words)
        return f"value is unknown ({_shown(value)}), allowed are {allowed}", near(value, key.words)
    if base is str and isinstance(value, str):
        if meta.max_length is not None and len(value) > meta.max_length:
            return f"value is too long ({len(value)}), at most {meta.max_length} is allowed", ""
        return (
            f"value has a character that is not allowed ({_shown(value)})",
            meta.description or "",
        )
    if type(value) is base or (type(value) is int and base is float):
        number: Any = value  # its type allows comparing, and so its bounds are what is wrong
        if isinstance(value, float) and isnan(value):
            return "value is not a number (nan)", ""
        if number > meta.le:
            most = _bound(key, meta.le)
            return f"value is too large ({_shown(value)}), at most {most} is allowed", ""
        least = _bound(key, meta.ge)
        return f"value is too small ({_shown(value)}), at least {least} is required", ""
    if base is None:
        return f"expected one of {', '.join(key.words)}, got {described(value)}", ""
    noun = 'a size such as "16MiB"' if key.form == "size" else _NOUNS[base]
    choices = " or ".join((noun, *(f'"{word}"' for word in key.words)))
    return f"expected {choices}, got {described(value)}", ""


def described(value: object) -> str:
    """A value of a wrong type: what it is, and itself where it is short to say."""
    noun = _NOUNS.get(type(value)) or (
        "a date or time"
        if type(value).__module__ == "datetime"
        else f"a value of type {type(value).__name__}"
    )
    return f"{noun} ({_shown(value)})" if type(value) in (int, float, str) else noun


def show(loaded: Loaded) -> str:
    """A table of all keys: name, value, and where it came from."""
    rows = []
    for name, origin in loaded.origin.items():
        value = _value(loaded, name)
        rows.append((name, f'"{value}"' if isinstance(value, str) else str(value), origin))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}\n" for a, b, c in rows)


def show_json(loaded: Loaded) -> str:
    """The same as JSON: an object by name, each with `value` and `origin`."""
    import json

    rows = {
        name: {"value": _value(loaded, name), "origin": origin}
        for name, origin in loaded.origin.items()
    }
    return json.dumps(rows, indent=2) + "\n"


def default_text() -> str:
    """`etc/rfaas.toml`: every key with its unit, bounds, default and reason.

    Read through the loader, so that it is found in a zip as well.
    """
    path = os.path.join(os.path.dirname(os.path.dirname(__file__)), "etc", "rfaas.toml")
    data: bytes = __loader__.get_data(path)  # type: ignore[name-defined]
    return data.decode()


def _value(loaded: Loaded, name: str) -> object:
    section, _, key = name.partition(".")
    value: object = getattr(getattr(loaded.config, section), key)
    return value


def _bound(key: Key, bound: Any) -> str:
    if key.form == "size" and bound >= 1024:
        return f"{bound} ({format_bytes(bound)})"
    return str(bound)


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits: sys.set_int_max_str_digits
        return "..."
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else text[:_SHOWN_CHARACTERS_MAX] + "..."
