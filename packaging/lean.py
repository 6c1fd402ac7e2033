"""What is changed in msgspec's Python sources on the way into the zipapp: imports, nothing else.

`import msgspec` imports all of itself, and with it what a start of ours has no use
for: 4 ms of it, measured, where 15 are the aim for all.  The version is pinned, and a
source that is not as it is expected here ends the build.
"""

from __future__ import annotations

from parts import BuildError

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
# instead are types that no value is of; a later `import uuid` finds the real module.
_STAND_INS = """
import sys


class _Module:
    class Decimal: ...
    class UUID: ...
    class SafeUUID:
        unknown = None


_names = [name for name in ("decimal", "uuid") if name not in sys.modules]
sys.modules.update(dict.fromkeys(_names, _Module))
try:
    from . import _core
finally:
    for _name in _names:
        del sys.modules[_name]
"""
_SCHEMA = "from ._json_schema import schema, schema_components\n"

_CHANGES = {
    "msgspec": (
        (_SUBMODULES, _ON_DEMAND),
        ("from ._core import (\n", _STAND_INS + "from ._core import (\n"),
    ),
    "msgspec.json": ((_SCHEMA, ""),),
}


def source_of(name: str, text: str) -> str:
    """The source of a carried module as it is compiled into the zipapp.

    Raises:
        BuildError: this version of the module is another one than this was written for.
    """
    for old, new in _CHANGES.get(name, ()):
        if text.count(old) != 1:
            raise BuildError(f"{name} is not what packaging/lean.py was written for")
        text = text.replace(old, new)
    return text
