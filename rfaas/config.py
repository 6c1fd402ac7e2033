"""The configuration: one TOML file for all roles, checked before anything starts.

Every key, its type, its bounds and its default is declared once, in the records
below; `etc/rfaas.toml` says the same to people and a test holds it to this file.
A value is taken from the first of: flag, environment (`RFAAS_LANE_SLOTS` for
`lane.slots`), file, default; but a wrong value is refused wherever it stands,
with its place, the value and what is allowed.

The TOML reader is imported only when a file is read: `rfaas call` must start fast.
"""

from __future__ import annotations

import errno
import operator
import os
import stat
import sys
from contextlib import suppress
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_type_hints

import msgspec
from msgspec import Meta, Struct

from rfaas import config_text
from rfaas.errors import ConfigError, UsageError, near
from rfaas.proto import wire
from rfaas.units import parse_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

CONFIG_BYTES_MAX = 1 << 20
SOCKET_PATH_BYTES_MAX = 107  # 108 with its NUL: sun_path, unix(7)
_VARIABLES = ("RFAAS_CONFIG", "RFAAS_PYTHON", "RFAAS_RUNTIME_DIR", "RFAAS_STATE_DIR")
_DIR_HINT = "set RFAAS_RUNTIME_DIR or RFAAS_STATE_DIR to a directory of your own"
_TEN_YEARS_S = 10 * 365 * 86400  # as in proto/messages.py

Size = Annotated[int, Meta(ge=1, le=2**60, extra={"form": "size"})]
SlotBytes = Annotated[int, Meta(ge=1, le=wire.SLOT_BYTES_MAX, extra={"form": "size"})]
Address = Annotated[str, Meta(extra={"form": "address"})]
Path = Annotated[str, Meta(max_length=4095, pattern=r"^[^\x00]*$")]  # 4096: PATH_MAX, limits.h
Name = Annotated[
    str,
    Meta(
        max_length=128,
        pattern=r"^[A-Za-z0-9._@:+-]*\Z",
        description="letters, digits and . _ @ : + - are allowed",
    ),
]
Cores = Annotated[int, Meta(ge=1, le=65536)]
Duration = Annotated[float, Meta(ge=0.1, le=_TEN_YEARS_S)]


class Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the sections."""


class ResourceManagerConfig(Section, frozen=True):
    """`[resource_manager]`: where it listens, what it remembers, how patient it is."""

    address: Address = ""
    store: Path = ""
    synchronous: Literal["normal", "full"] = "normal"
    heartbeat_s: Annotated[float, Meta(ge=0.01, le=3600)] = 1.0
    missed_beats_max: Annotated[int, Meta(ge=1, le=1000)] = 5
    lease_duration_max_s: Duration = 86400.0


class ExecutorConfig(Section, frozen=True):
    """`[executor]`: what a node offers, and to whom."""

    address: Address = ""
    name: Name = ""
    resource_manager: Address | Literal["none"] = ""
    cores: Cores | Literal["all"] = "all"
    memory: Size | Literal["all"] = "all"
    load_timeout_s: Annotated[float, Meta(ge=0.1, le=3600)] = 30.0
    stop_grace_s: Annotated[float, Meta(ge=0, le=600)] = 2.0
    library_cache_bytes_max: Size = 1 << 30
    workers_crashed_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 16


class ClientConfig(Section, frozen=True):
    """`[client]`: whom a client asks, and how it waits."""

    resource_manager: Address = ""
    executor: Address | Literal["private"] = ""
    name: Name = ""
    lease_duration_s: Duration = 60.0
    call_timeout_s: Annotated[float, Meta(ge=0, le=_TEN_YEARS_S)] = 0.0
    spin_us: Annotated[int, Meta(ge=0, le=1_000_000)] = 1000


class LeaseConfig(Section, frozen=True):
    """`[lease]`: what a lease asks for where the caller does not say."""

    cores: Cores = 1
    memory: Size = 1 << 30
    isolation: Literal["none", "process", "sandbox", "container"] = "process"


class LaneConfig(Section, frozen=True):
    """`[lane]`: the window between a client and one worker core."""

    slots: Annotated[int, Meta(ge=1, le=wire.SLOTS_MAX)] = wire.SLOTS_DEFAULT
    slot_bytes: SlotBytes = 16 << 20
    hot_timeout_ms: Annotated[int, Meta(ge=-1, le=2**31 - 1)] = 100
    transport: Literal["auto", "shm", "verbs"] = "auto"

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "slot_bytes", wire.slot_bytes_for(self.slot_bytes))


class RdmaConfig(Section, frozen=True):
    """`[rdma]`: the NIC."""

    device: Name = ""


class LogConfig(Section, frozen=True):
    """`[log]`: how much every role says on stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(Section, frozen=True):
    """The whole file."""

    resource_manager: ResourceManagerConfig = ResourceManagerConfig()
    executor: ExecutorConfig = ExecutorConfig()
    client: ClientConfig = ClientConfig()
    lease: LeaseConfig = LeaseConfig()
    lane: LaneConfig = LaneConfig()
    rdma: RdmaConfig = RdmaConfig()
    log: LogConfig = LogConfig()


class Loaded(Struct, frozen=True):
    """A configuration, and where each value came from.

    `origin` has every key as "section.key": "flag", "environment RFAAS_LANE_SLOTS",
    "file PATH" or "default".  `file` is what was read, "" where there is none.
    """

    config: Config
    origin: dict[str, str]
    file: str


class _Given(NamedTuple):
    """One value that some source gives."""

    where: str  # how a message names its place
    origin: str
    section: str
    key: str
    value: object


def load(
    path: str | None = None,
    environ: Mapping[str, str] = os.environ,
    overrides: Mapping[str, object] = MappingProxyType({}),
) -> Loaded:
    """The configuration from all sources, with addresses, names and paths filled in.

    Only `client.resource_manager` and `client.executor` stay "" where nobody set
    them: whom to ask is found out when asking.

    Args:
        path: the file (`--config`), or None: the first there is of `$RFAAS_CONFIG`,
            `$XDG_CONFIG_HOME/rfaas/rfaas.toml` and `/etc/rfaas/rfaas.toml`.
        environ: the environment.
        overrides: flags by "section.key", each a value or the text that was typed;
            None stands for a flag that was not given.

    Raises:
        ConfigError: a file cannot be read, or a key or a value is wrong.
    """
    tree: dict[str, dict[str, object]] = {}
    origin = dict.fromkeys(_names(), "default")
    file = path or environ.get("RFAAS_CONFIG") or _found_file(environ)
    for given in _sources(file, environ, overrides):
        tree.setdefault(given.section, {})[given.key] = _checked(given)
        origin[f"{given.section}.{given.key}"] = given.origin
    return Loaded(_filled(msgspec.convert(tree, Config), environ), origin, file)


def checked_argument(name: str, key: str, value: object) -> Any:
    """`value`, as the configuration's "section.key" would take it, for argument `name`.

    Raises:
        UsageError: not a value for that key; the message is the same, with `name` as its place.
    """
    section, _, last = key.partition(".")
    if not isinstance(value, (bool, int)) and hasattr(value, "__index__"):
        value = operator.index(value)  # numbers of other libraries, such as numpy's
    try:
        return _checked(_Given(f"argument {name}", "argument", section, last, value))
    except ConfigError as error:
        raise UsageError(error.text, hint=error.hint) from None


def runtime_dir(environ: Mapping[str, str] = os.environ) -> str:
    """Where sockets go; not made yet, see `ensure_private_dir`.

    `$RFAAS_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/rfaas` where that is a directory we
    may write to (on a batch node it often is not), else `/tmp/rfaas-<uid>`.
    """
    if chosen := environ.get("RFAAS_RUNTIME_DIR"):
        return os.path.abspath(chosen)
    base = environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(base) and os.path.isdir(base) and os.access(base, os.W_OK | os.X_OK):
        return os.path.join(base, "rfaas")
    return f"/tmp/rfaas-{os.geteuid()}"


def state_dir(environ: Mapping[str, str] = os.environ) -> str:
    """Where the store goes; not made yet, see `ensure_private_dir`.

    `$RFAAS_STATE_DIR`, else `$XDG_STATE_HOME/rfaas`, else `~/.local/state/rfaas`, or
    the runtime directory where there is no home or it cannot be written to.
    """
    if chosen := environ.get("RFAAS_STATE_DIR"):
        return os.path.abspath(chosen)
    if os.path.isabs(base := environ.get("XDG_STATE_HOME", "")):
        return os.path.join(base, "rfaas")
    home = environ.get("HOME", "")
    wanted = there = os.path.join(home, ".local/state/rfaas")
    while there != home and not os.path.exists(there):
        there = os.path.dirname(there)
    if os.path.isabs(home) and os.access(there, os.W_OK | os.X_OK):
        return wanted
    return runtime_dir(environ)


def ensure_private_dir(path: str) -> None:
    """Make `path` a directory of mode 0700, or see that the one there is safe to use.

    Raises:
        ConfigError: it cannot be made, is a symbolic link or no directory, belongs to
            another user, or others may write to it.
    """
    path = os.path.abspath(path)  # no trailing slash: lstat(2) would follow a link
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        found = os.lstat(path)
    except OSError as error:
        raise ConfigError(
            f"cannot make directory {path}: {_system_text(error)}", hint=_DIR_HINT
        ) from None
    hint = _DIR_HINT
    if stat.S_ISLNK(found.st_mode):
        fault = "it is a symbolic link"
    elif not stat.S_ISDIR(found.st_mode):
        fault = "it is not a directory"
    elif found.st_uid != os.geteuid():
        fault = f"it belongs to user {found.st_uid}, not to user {os.geteuid()}"
    elif found.st_mode & 0o022:
        fault = f"others may write to it (mode {stat.S_IMODE(found.st_mode):04o})"
        hint = f"`chmod 700 {path}`"
    else:
        return
    raise ConfigError(f"directory {path} is not safe to use: {fault}", hint=hint)


def socket_path(address: str) -> str:
    """The path in `unix:/absolute/path`.

    Raises:
        ConfigError: another kind of address, not an absolute path, or one too long
            for a socket.
    """
    scheme, colon, path = address.partition(":")
    if scheme in ("tcp", "verbs", "ofi") and colon:
        raise ConfigError(
            f"address is not supported yet ({address!r:.99}), only unix:/absolute/path is",
        )
    if scheme != "unix" or not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise ConfigError(
            f"address is not understood ({address!r:.99}), unix:/absolute/path is allowed",
        )
    if (length := len(os.fsencode(path))) > SOCKET_PATH_BYTES_MAX:
        raise ConfigError(
            f"socket path is too long ({length} bytes), "
            f"at most {SOCKET_PATH_BYTES_MAX} are allowed: {path}",
            hint="set RFAAS_RUNTIME_DIR to a directory with a short name",
        )
    return path


# Sources, the weakest first -----------------------------------------------


def _sources(
    file: str, environ: Mapping[str, str], overrides: Mapping[str, object]
) -> Iterator[_Given]:
    # The embedded configuration (`rfaas pack`) comes here, weaker than a file.
    if file:
        yield from _from_file(file)
    yield from _from_environ(environ)
    for name, value in overrides.items():
        if name not in _names():
            raise ConfigError(f"flag {name}: unknown key", hint=near(name, _names(), 2))
        if value is not None:
            section, _, key = name.partition(".")
            yield _Given(f"flag {name}", "flag", section, key, _from_text(section, key, value))


def _found_file(environ: Mapping[str, str]) -> str:
    user = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME", "/"), ".config")
    candidates = (os.path.join(user, "rfaas/rfaas.toml"), "/etc/rfaas/rfaas.toml")
    return next((file for file in candidates if os.path.exists(file)), "")


def _from_file(path: str) -> Iterator[_Given]:
    sections = _sections()
    for section, table in _read_toml(path).items():
        where = f"{path}: {section}"
        if section not in sections:
            raise ConfigError(f"{where}: unknown section", hint=near(section, sections, 1))
        if not isinstance(table, dict):
            raise ConfigError(f"{where}: expected a table, got {config_text.described(table)}")
        for key, value in table.items():
            yield _Given(f"{where}.{key}", f"file {path}", section, key, value)


def _read_toml(path: str) -> dict[str, object]:
    try:
        with open(path, "rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {_system_text(error)}") from None
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigError(
            f"{path}: file is too large, at most {CONFIG_BYTES_MAX} bytes are allowed"
        )
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        tree: dict[str, object] = tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: line {line} is not UTF-8") from None
    except RecursionError:
        raise ConfigError(f"{path}: not TOML: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, or an integer of thousands of digits
        text = str(error)
        raise ConfigError(f"{path}: not TOML: {text[:1].lower()}{text[1:]}") from None
    return tree


def _from_environ(environ: Mapping[str, str]) -> Iterator[_Given]:
    variables = {f"RFAAS_{name.replace('.', '_').upper()}": name for name in _names()}
    for variable, text in environ.items():
        if not variable.startswith("RFAAS_") or variable in _VARIABLES:
            continue
        if variable in variables:
            section, _, key = variables[variable].partition(".")
            value = _from_text(section, key, text)
            yield _Given(variable, f"environment {variable}", section, key, value)
        elif _is_like_one(variable, (*variables, *_VARIABLES)):
            raise ConfigError(f"{variable}: unknown variable", hint=near(variable, variables, 2))


def _from_text(section: str, key: str, value: object) -> object:
    """What a text from the environment or the command line stands for, if it can be read."""
    base = _keys(section)[key].base
    if isinstance(value, str) and base in (int, float):
        with suppress(ValueError):
            return base(value)
    return value


def _is_like_one(variable: str, known: Iterable[str]) -> bool:
    """Whether somebody meant a variable of ours: one of a section, or a slip of the pen."""
    if variable.startswith(tuple(f"RFAAS_{section.upper()}_" for section in _sections())):
        return True
    import difflib

    return bool(difflib.get_close_matches(variable, known, n=1, cutoff=0.9))


# Checks -------------------------------------------------------------------


def _checked(given: _Given) -> object:
    """The value as its record takes it.

    Raises:
        ConfigError: no such key, or not a value for it.
    """
    declared = _keys(given.section).get(given.key)
    if declared is None:
        hint = near(given.key, _keys(given.section))
        raise ConfigError(f"{given.where}: unknown key", hint=hint)
    value = given.value
    if declared.form == "size" and isinstance(value, str):
        with suppress(ValueError):
            value = parse_bytes(value)
    try:
        value = msgspec.convert(value, declared.hint)
    except msgspec.ValidationError:
        text, hint = config_text.fault(declared, value)
        raise ConfigError(f"{given.where}: {text}", hint=hint) from None
    if declared.form == "address" and isinstance(value, str) and value not in ("", *declared.words):
        try:
            socket_path(value)
        except ConfigError as error:
            raise ConfigError(f"{given.where}: {error.text}", hint=error.hint) from None
    return value


# Declarations, and what fills the gaps ------------------------------------


def _sections() -> dict[str, type[Section]]:
    return {name: type(getattr(Config(), name)) for name in Config.__struct_fields__}


def _names() -> list[str]:
    return [f"{name}.{key}" for name, kind in _sections().items() for key in kind.__struct_fields__]


@cache
def _keys(section: str) -> dict[str, config_text.Key]:
    hints = get_type_hints(_sections()[section], include_extras=True)
    return {key: config_text.key_of(hint) for key, hint in hints.items()}


def _filled(config: Config, environ: Mapping[str, str]) -> Config:
    """Addresses, names and paths in place of "", as far as they are known without asking."""
    manager, executor, client = config.resource_manager, config.executor, config.client
    host = os.uname().nodename
    # Not from the password database: on a cluster that may be a question to another machine.
    user = environ.get("USER") or environ.get("LOGNAME") or str(os.geteuid())
    runtime = runtime_dir(environ)
    address = manager.address or f"unix:{runtime}/resource-manager.sock"
    name = executor.name or host
    replace = msgspec.structs.replace
    return replace(
        config,
        resource_manager=replace(
            manager,
            address=address,
            store=manager.store or f"{state_dir(environ)}/resource-manager.sqlite",
        ),
        executor=replace(
            executor,
            address=executor.address or f"unix:{runtime}/executor-{name}.sock",
            name=name,
            resource_manager=executor.resource_manager or address,
        ),
        client=replace(client, name=client.name or f"{user}@{host}:{os.getpid()}"),
    )


def _system_text(error: OSError) -> str:
    number = error.errno or 0
    return f"{errno.errorcode.get(number, number)} ({os.strerror(number)})"
