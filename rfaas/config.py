"""The configuration: one TOML file for all roles, checked before anything starts.

Every key, its type, its bounds and its default is declared once, in the records
below; `etc/rfaas.toml` says the same to people and a test holds it to this file.
A value is taken from the first of: flag, environment (`RFAAS_LANE_SLOTS` for
`lane.slots`), the file that was named (`--config`, `RFAAS_CONFIG`), what the
program carries (`rfaas pack`), the file that was merely found, default; but a
wrong value is refused wherever it stands, with its place, the value and what is
allowed.  The program's own beats a file that is found: who copies one file to
every node wants every node to do what was packed and checked, whatever an
earlier installation left in /etc.  Who does want something else names it.

The TOML reader is imported only when a file is read: `rfaas call` must start fast.
"""

from __future__ import annotations

import operator
import os
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta, Struct

from rfaas import config_sources, config_text
from rfaas.config_sources import Declared, Given
from rfaas.errors import ConfigError, UsageError
from rfaas.paths import runtime_dir, state_dir
from rfaas.proto import wire

if TYPE_CHECKING:
    from collections.abc import Mapping

_TEN_YEARS_S = 10 * 365 * 86400  # as in proto/messages.py

Size = Annotated[int, Meta(ge=1, le=2**60, extra={"form": "size"})]
SlotBytes = Annotated[int, Meta(ge=1, le=wire.SLOT_BYTES_MAX, extra={"form": "size"})]
Address = Annotated[str, Meta(extra={"form": "address"})]
HostPort = Annotated[str, Meta(extra={"form": "host-port"})]
Price = Annotated[float, Meta(ge=0, le=1e9)]
# `allowed`: a pattern for `config_sources.checked`; msgspec's own are compiled at each start.
Path = Annotated[  # 4096: PATH_MAX, limits.h
    str, Meta(max_length=4095, extra={"allowed": r"[^\x00]*"})
]
Name = Annotated[
    str,
    Meta(
        max_length=128,
        extra={"allowed": r"[A-Za-z0-9._@:+-]*"},
        description="letters, digits and . _ @ : + - are allowed",
    ),
]
Words = Annotated[
    str,
    Meta(
        max_length=255,
        extra={"allowed": r"[a-z0-9 -]*"},
        description="words of small letters, digits and -, with spaces between them",
    ),
]
Patterns = Annotated[str, Meta(max_length=4095, extra={"allowed": r"[^\x00]*"})]
Switch = Annotated[bool, Meta()]
Cores = Annotated[int, Meta(ge=1, le=65536)]
Duration = Annotated[float, Meta(ge=0.1, le=_TEN_YEARS_S)]


_LIBRARIES = (
    "libc.so.6 libm.so.6 libdl.so.2 libpthread.so.0 librt.so.1 libgcc_s.so.1 libstdc++.so.6 "
    "libgomp.so.1 libgfortran.so.5 libquadmath.so.0 libatomic.so.1 libz.so.1"
)


class Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the sections."""


class ResourceManagerConfig(Section, frozen=True):
    """`[resource_manager]`: where it listens, what it remembers, how patient it is."""

    address: Address = ""
    store: Path = ""
    synchronous: Literal["normal", "full"] = "full"
    heartbeat_s: Annotated[float, Meta(ge=0.01, le=3600)] = 1.0
    missed_beats_max: Annotated[int, Meta(ge=1, le=1000)] = 5
    lease_duration_max_s: Duration = 86400.0
    revoke_notice_s: Annotated[float, Meta(ge=0, le=86400)] = 10.0
    cores_per_client_max: Annotated[int, Meta(ge=0, le=2**31)] = 0
    leases_per_client_max: Annotated[int, Meta(ge=0, le=2**31)] = 0
    gpus_per_client_max: Annotated[int, Meta(ge=0, le=2**31)] = 0


class ExecutorConfig(Section, frozen=True):
    """`[executor]`: what a node offers, and to whom."""

    address: Address = ""
    name: Name = ""
    resource_manager: Address | Literal["none"] = ""
    cores: Cores | Literal["all"] = "all"
    memory: Size | Literal["all"] = "all"
    windows_max: Size | Literal["all"] = "all"
    gpus: Patterns = "auto"
    load_timeout_s: Annotated[float, Meta(ge=0.1, le=3600)] = 30.0
    stop_grace_s: Annotated[float, Meta(ge=0, le=600)] = 2.0
    library_cache_bytes_max: Size = 1 << 30
    workers_crashed_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 16
    endpoint: Literal["auto", "always"] = "auto"
    keep_warm_s: Annotated[float, Meta(ge=0, le=_TEN_YEARS_S)] = 0.0
    keep_warm_max: Annotated[int, Meta(ge=1, le=65536)] = 16
    oversubscribe: Annotated[int, Meta(ge=1, le=64)] = 1


class ClientConfig(Section, frozen=True):
    """`[client]`: whom a client asks, and how it waits."""

    resource_manager: Address = ""
    executor: Address | Literal["private"] = ""
    name: Name = ""
    lease_duration_s: Duration = 60.0
    call_timeout_s: Annotated[float, Meta(ge=0, le=_TEN_YEARS_S)] = 0.0
    spin_us: Annotated[int, Meta(ge=0, le=1_000_000)] = 1000
    busy_timeout_s: Annotated[float, Meta(ge=0, le=_TEN_YEARS_S)] = 30.0


class ControlConfig(Section, frozen=True):
    """`[control]`: who is at the other end of a link."""

    auth: Literal["none", "key", "munge"] = "none"
    key_file: Path = ""
    munge_socket: Path = ""


class LeaseConfig(Section, frozen=True):
    """`[lease]`: what a lease asks for where the caller does not say."""

    cores: Cores | Literal["all"] = 1
    memory: Size | Literal["all"] = 1 << 30
    gpus: Annotated[int, Meta(ge=0, le=4096)] = 0
    placement: Literal["pack", "spread", "node"] = "pack"
    wait_s: Annotated[float, Meta(ge=0, le=_TEN_YEARS_S)] = 0.0
    isolation: Literal["default", "none", "process", "sandbox", "bubblewrap", "container"] = (
        "default"
    )
    image: Path = ""
    keep_warm: Switch = True
    shared: Switch = False


class SandboxConfig(Section, frozen=True):
    """`[sandbox]`: how a node shuts workers in, and what they may use."""

    levels: Words = "all"
    degrade: Words = "cgroup landlock time"
    require: Switch = False
    libraries: Path = _LIBRARIES
    pool: Annotated[int, Meta(ge=0, le=1024)] = 1
    pool_age_s: Annotated[float, Meta(ge=1, le=_TEN_YEARS_S)] = 300.0
    processes: Annotated[int, Meta(ge=1, le=2**22)] = 64
    open_files: Annotated[int, Meta(ge=32, le=2**20)] = 256
    file_size: Size = 1 << 30


class ContainerConfig(Section, frozen=True):
    """`[container]`: what runs the images that leases name, and which ones."""

    engine: Literal[
        "auto", "runc", "crun", "podman", "docker", "apptainer", "singularity", "sarus"
    ] = "auto"
    images: Patterns = "*"
    pull: Literal["missing", "never"] = "missing"
    pull_timeout_s: Annotated[float, Meta(ge=1, le=86400)] = 600.0
    store: Path = ""
    registry_auth: Path = ""
    registry_insecure: Switch = False
    podman_runtime: Name = ""
    docker_rdma_sriov: Switch = False
    docker_network: Name = ""
    docker_address: Name = ""
    docker_volume: Path = ""
    docker_registry: Name = ""


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


class HttpConfig(Section, frozen=True):
    """`[http]`: the resource manager's page, API and metrics."""

    address: HostPort | Literal["none"] = "127.0.0.1:7470"
    keys: Path = ""
    certificate: Path = ""
    certificate_key: Path = ""


class PricesConfig(Section, frozen=True):
    """`[prices]`: what a bill costs."""

    currency: Name = ""
    allocated_core_hour: Price = 0.0
    polling_core_hour: Price = 0.0
    executing_core_hour: Price = 0.0
    million_calls: Price = 0.0
    gpu_hour: Price = 0.0


class LogConfig(Section, frozen=True):
    """`[log]`: how much every role says on stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(Section, frozen=True):
    """The whole file."""

    resource_manager: ResourceManagerConfig = ResourceManagerConfig()
    executor: ExecutorConfig = ExecutorConfig()
    client: ClientConfig = ClientConfig()
    control: ControlConfig = ControlConfig()
    lease: LeaseConfig = LeaseConfig()
    sandbox: SandboxConfig = SandboxConfig()
    container: ContainerConfig = ContainerConfig()
    lane: LaneConfig = LaneConfig()
    rdma: RdmaConfig = RdmaConfig()
    http: HttpConfig = HttpConfig()
    prices: PricesConfig = PricesConfig()
    log: LogConfig = LogConfig()


class Loaded(Struct, frozen=True):
    """A configuration, and where each value came from.

    `origin` has every key as "section.key": "flag", "environment RFAAS_LANE_SLOTS",
    "file PATH", "embedded NAME", either of them with `, host "PATTERN"`, or "default".
    `read` names the files that were read, the weakest first.
    """

    config: Config
    origin: dict[str, str]
    read: tuple[str, ...] = ()


def load(
    path: str | None = None,
    environ: Mapping[str, str] = os.environ,
    overrides: Mapping[str, object] = MappingProxyType({}),
    *,
    embedded: tuple[str, bytes] | None = None,
    host: str = "",
) -> Loaded:
    """The configuration from all sources, with addresses, names and paths filled in.

    Only `client.resource_manager` and `client.executor` stay "" where nobody set
    them: whom to ask is found out when asking.

    Args:
        path: the file (`--config`), or None: `$RFAAS_CONFIG`, or the first there is of
            `$XDG_CONFIG_HOME/rfaas/rfaas.toml` and `/etc/rfaas/rfaas.toml`.
        environ: the environment.
        overrides: flags by "section.key", each a value or the text that was typed;
            None stands for a flag that was not given.
        embedded: name and text of the configuration that the program carries.
        host: the host that [[host]] tables are for, "": this one.

    Raises:
        ConfigError: the first thing that is wrong: a file cannot be read, or a key or a
            value is wrong.
    """
    loaded, faults = examine(path, environ, overrides, embedded=embedded, host=host)
    if loaded is None:
        raise faults[0]
    return loaded


def examine(
    path: str | None = None,
    environ: Mapping[str, str] = os.environ,
    overrides: Mapping[str, object] = MappingProxyType({}),
    *,
    embedded: tuple[str, bytes] | None = None,
    host: str = "",
) -> tuple[Loaded | None, list[ConfigError]]:
    """`load`, with all that is wrong instead of an exception: then there is no configuration."""
    host = host or os.uname().nodename
    sources = config_sources.Sources(_declared(), host)
    named = path or environ.get("RFAAS_CONFIG")
    if not named and (found := config_sources.found_file(environ)):
        sources.take_file(found)
    if embedded:
        name, data = embedded
        sources.take_toml(data, f"embedded {name}", f"embedded {name}")
    if named:
        sources.take_file(named)
    sources.take_environment(environ)
    sources.take_flags(overrides)
    if sources.faults:
        return None, sources.faults
    config = _filled(_records(sources.values), environ, host)
    origin = dict.fromkeys(config_sources.names_of(_declared()), "default") | sources.origin
    return Loaded(config, origin, tuple(sources.read)), []


def checked_argument(name: str, key: str, value: object) -> Any:
    """`value`, as the configuration's "section.key" would take it, for argument `name`.

    Raises:
        UsageError: not a value for that key; the message is the same, with `name` as its place.
    """
    section, _, last = key.partition(".")
    if not isinstance(value, (bool, int)) and hasattr(value, "__index__"):
        value = operator.index(value)  # numbers of other libraries, such as numpy's
    try:
        given = Given(f"argument {name}", "argument", section, last, value)
        return config_sources.checked(given, _declared())
    except ConfigError as error:
        raise UsageError(error.text, hint=error.hint) from None


def _declared() -> Declared:
    sections = {name: type(getattr(Config(), name)) for name in Config.__struct_fields__}
    return Declared({name: kind.__struct_fields__ for name, kind in sections.items()}, _keys)


@cache
def _keys(section: str) -> dict[str, config_text.Key]:
    hints = get_type_hints(type(getattr(Config(), section)), include_extras=True)
    return {key: config_text.key_of(hint) for key, hint in hints.items()}


def _records(values: Mapping[str, Mapping[str, Any]]) -> Config:
    """The records of values that are checked already: to convert all takes 0.5 ms."""
    kinds = {section: type(getattr(Config(), section)) for section in values}
    return Config(**{section: kind(**values[section]) for section, kind in kinds.items()})


def _filled(config: Config, environ: Mapping[str, str], host: str) -> Config:
    """Addresses, names and paths in place of "", as far as they are known without asking."""
    manager, executor, client = config.resource_manager, config.executor, config.client
    container = config.container
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
        container=replace(container, store=container.store or f"{state_dir(environ)}/images"),
        http=replace(config.http, keys=config.http.keys or f"{state_dir(environ)}/http-keys"),
        client=replace(client, name=client.name or f"{user}@{host}:{os.getpid()}"),
    )
