"""Where values come from: files, what the program carries, the environment, flags.

Reads and checks each source, and keeps every fault rather than the first one:
who corrects a file wants to see them all.  Which source wins follows from the
order in which `config.py` has them read.  Keys are known by their declarations
alone, not by the records that hold them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from rfaas import __version__, config_text
from rfaas.errors import ConfigError, near
from rfaas.paths import system_text
from rfaas.units import parse_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

CONFIG_BYTES_MAX = 1 << 20
CONFIG_FORMAT = 1  # `format` of a file; raised when an older program would misread a newer file
HOST = "host"  # [[host]]: sections for the hosts that `match` names
_SWITCH = {"true": True, "false": False}
_BESIDE_SECTIONS = ("format", HOST)
_VARIABLES = ("RFAAS_CONFIG", "RFAAS_PYTHON", "RFAAS_RUNTIME_DIR", "RFAAS_STATE_DIR")


class Declared(Struct, frozen=True):
    """What there is: sections and the names of their keys, and on demand the keys themselves."""

    sections: Mapping[str, Sequence[str]]
    keys: Callable[[str], Mapping[str, config_text.Key]]  # taking types apart costs milliseconds


class Given(Struct, frozen=True):
    """One value that some source gives."""

    where: str  # how a message names its place
    origin: str
    section: str
    key: str
    value: object


class Sources:
    """What the sources read so far have given; a later one wins.

    Attributes:
        values: checked values by section and key.
        origin: by "section.key", for the keys that some source gave.
        faults: all that is wrong, in the order of reading.
        read: what was read: "file PATH", "embedded NAME".
    """

    def __init__(self, declared: Declared, host: str) -> None:
        self.values: dict[str, dict[str, object]] = {}
        self.origin: dict[str, str] = {}
        self.faults: list[ConfigError] = []
        self.read: list[str] = []
        self._declared = declared
        self._host = host

    def take_file(self, path: str) -> None:
        """A configuration file."""
        try:
            with open(path, "rb") as file:
                data = file.read(CONFIG_BYTES_MAX + 1)
        except OSError as error:
            self.faults.append(ConfigError(f"cannot read {path}: {system_text(error)}"))
            return
        self.take_toml(data, path, f"file {path}")

    def take_toml(self, data: bytes, name: str, origin: str) -> None:
        """The text of one: `name` stands for it in messages, `origin` in tables."""
        self.read.append(origin)
        try:
            tree = _parsed(data, name)
        except ConfigError as error:
            self.faults.append(error)
            return
        hosts = tree.pop(HOST, [])
        self._take_sections(tree, f"{name}: ", origin, applies=True)
        if not isinstance(hosts, list):
            found = config_text.described(hosts)
            self._fault(f"{name}: host: expected tables such as [[host]], got {found}")
            return
        for number, table in enumerate(hosts, start=1):
            self._take_host(table, number, name, origin)

    def take_environment(self, environ: Mapping[str, str]) -> None:
        """RFAAS_LANE_SLOTS for lane.slots; what is not like one of ours is let be."""
        names = names_of(self._declared)
        variables = {f"RFAAS_{name.replace('.', '_').upper()}": name for name in names}
        for variable, text in environ.items():
            if not variable.startswith("RFAAS_") or variable in _VARIABLES:
                continue
            if variable in variables:
                section, _, key = variables[variable].partition(".")
                value = self._from_text(section, key, text)
                self._take(Given(variable, f"environment {variable}", section, key, value))
            elif self._is_like_one(variable, (*variables, *_VARIABLES)):
                self._fault(f"{variable}: unknown variable", near(variable, variables, 2))

    def take_flags(self, overrides: Mapping[str, object]) -> None:
        """Values by "section.key"; None stands for a flag that was not given."""
        names = names_of(self._declared)
        for name, value in overrides.items():
            if name not in names:
                self._fault(f"flag {name}: unknown key", near(name, names, 2))
            elif value is not None:
                section, _, key = name.partition(".")
                text = self._from_text(section, key, value)
                self._take(Given(f"flag {name}", "flag", section, key, text))

    def _take_sections(
        self, tree: Mapping[str, object], where: str, origin: str, *, applies: bool
    ) -> None:
        for section, table in tree.items():
            if section not in self._declared.sections:
                hint = near(section, (*self._declared.sections, *_BESIDE_SECTIONS), 1)
                self._fault(f"{where}{section}: unknown section", hint)
            elif not isinstance(table, dict):
                found = config_text.described(table)
                self._fault(f"{where}{section}: expected a table, got {found}")
            else:
                for key, value in table.items():
                    given = Given(f"{where}{section}.{key}", origin, section, key, value)
                    self._take(given, applies=applies)

    def _take_host(self, table: object, number: int, name: str, origin: str) -> None:
        where = f"{name}: host {number}"
        if not isinstance(table, dict):
            self._fault(f"{where}: expected a table, got {config_text.described(table)}")
            return
        sections = dict(table)
        pattern = sections.pop("match", None)
        if pattern is None:
            self._fault(f"{where}: match is missing", 'such as match = "gpu-*"')
        elif not isinstance(pattern, str):
            found = config_text.described(pattern)
            self._fault(f"{where}: match: expected a string, got {found}")
        elif not pattern:
            self._fault(f"{where}: match is empty", 'match = "*" is every host')
        else:
            where = f'{name}: host "{pattern}"'
            origin = f'{origin}, host "{pattern}"'
        # What stands there for other hosts is checked as well: one check serves all nodes.
        applies = isinstance(pattern, str) and matches(self._host, pattern)
        self._take_sections(sections, f"{where}: ", origin, applies=applies)

    def _take(self, given: Given, *, applies: bool = True) -> None:
        try:
            value = checked(given, self._declared)
        except ConfigError as error:
            self.faults.append(error)
            return
        if applies:
            self.values.setdefault(given.section, {})[given.key] = value
            self.origin[f"{given.section}.{given.key}"] = given.origin

    def _fault(self, text: str, hint: str = "") -> None:
        self.faults.append(ConfigError(text, hint=hint))

    def _from_text(self, section: str, key: str, value: object) -> object:
        """What a text from the environment or the command line stands for, if it can be read."""
        base = self._declared.keys(section)[key].base
        if isinstance(value, str) and base in (int, float):
            with suppress(ValueError):
                return base(value)
        if isinstance(value, str) and base is bool:
            return _SWITCH.get(value, value)
        return value

    def _is_like_one(self, variable: str, known: Iterable[str]) -> bool:
        """Whether somebody meant a variable of ours: one of a section, or a slip of the pen."""
        sections = (f"RFAAS_{section.upper()}_" for section in self._declared.sections)
        if variable.startswith(tuple(sections)):
            return True
        import difflib

        return bool(difflib.get_close_matches(variable, known, n=1, cutoff=0.9))


def found_file(environ: Mapping[str, str]) -> str | None:
    """The file that is there without being named: the user's, else the machine's."""
    user = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME", "/"), ".config")
    candidates = (os.path.join(user, "rfaas/rfaas.toml"), "/etc/rfaas/rfaas.toml")
    return next((file for file in candidates if os.path.exists(file)), None)


def names_of(declared: Declared) -> list[str]:
    """Every "section.key"."""
    return [f"{section}.{key}" for section, keys in declared.sections.items() for key in keys]


def matches(host: str, pattern: str) -> bool:
    """Whether a host's name, with or without its domain, fits a shell pattern; case is nothing."""
    from fnmatch import fnmatchcase  # costs `re`, which only a file with [[host]] needs

    name = host.lower()
    return any(fnmatchcase(text, pattern.lower()) for text in (name, name.partition(".")[0]))


def checked(given: Given, declared: Declared) -> object:
    """The value as its record takes it.

    Raises:
        ConfigError: no such key, or not a value for it.
    """
    key = declared.keys(given.section).get(given.key)
    if key is None:
        hint = near(given.key, declared.sections[given.section])
        raise ConfigError(f"{given.where}: unknown key", hint=hint)
    value = given.value
    if key.form == "size" and isinstance(value, str):
        with suppress(ValueError):
            value = parse_bytes(value)
    try:
        value = msgspec.convert(value, key.hint)
    except msgspec.ValidationError:
        text, hint = config_text.fault(key, value)
        raise ConfigError(f"{given.where}: {text}", hint=hint) from None
    if key.allowed and isinstance(value, str) and value not in key.words:
        import re

        if not re.fullmatch(key.allowed, value):
            text, hint = config_text.fault(key, value)
            raise ConfigError(f"{given.where}: {text}", hint=hint)
    is_address = key.form in ("address", "host-port")
    if is_address and isinstance(value, str) and value not in ("", *key.words):
        from rfaas import addresses

        try:
            # Whom to ask must be somebody; where to listen may be left open.
            listens = given.key == "address"
            scheme = "tcp:" if key.form == "host-port" else ""
            (addresses.parse if listens else addresses.reachable)(scheme + value)
        except ConfigError as error:
            raise ConfigError(f"{given.where}: {error.text}", hint=error.hint) from None
    return value


def _parsed(data: bytes, name: str) -> dict[str, object]:
    """The tables of a file in a format that we read, without its `format`."""
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigError(
            f"{name}: file is too large, at most {CONFIG_BYTES_MAX} bytes are allowed"
        )
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        tree: dict[str, object] = tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name}: line {line} is not UTF-8") from None
    except RecursionError:
        raise ConfigError(f"{name}: not TOML: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, or an integer of thousands of digits
        text = str(error)
        raise ConfigError(f"{name}: not TOML: {text[:1].lower()}{text[1:]}") from None
    version = tree.pop("format", CONFIG_FORMAT)
    if type(version) is not int or version < 1:
        found = config_text.described(version)
        raise ConfigError(f"{name}: format: expected a number from 1 on, got {found}")
    if version > CONFIG_FORMAT:
        # Nothing else is looked at: keys of a newer format would only make more noise.
        raise ConfigError(
            f"{name}: format is too new ({version}), rfaas {__version__} reads {CONFIG_FORMAT}",
            hint="use the rfaas that the file was written for, or a newer one",
        )
    return tree
