"""What is known of a machine, as records: JSON of them is what `--json` prints."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct


class Record(Struct, frozen=True, kw_only=True):
    """Base of them all; a key that is missing has its default, so that old records load."""


class Gid(Record, frozen=True, kw_only=True):
    """One entry of a port's table of addresses."""

    index: int
    gid: str
    kind: str  # "RoCE v2", "IB/RoCE v1"
    netdev: str = ""


class Port(Record, frozen=True, kw_only=True):
    """A port of a device."""

    number: int
    state: str  # "active", "down", "init", "armed"
    physical_state: str  # "LinkUp"
    link_layer: str  # "InfiniBand", "Ethernet"
    speed: str  # "100 Gb/sec (4X EDR)", in the kernel's own words
    netdev: str = ""
    is_netdev_here: bool = True  # False: it belongs to another network namespace
    is_netdev_up: bool = True
    addresses: list[str] = []  # of the netdev, as the kernel has them now
    gids: list[Gid] = []
    lid: int = 0

    @property
    def is_active(self) -> bool:
        """Whether packets can leave by it."""
        return self.state == "active"

    @property
    def hosts(self) -> list[str]:
        """The addresses that rdma_cm can bind to without a scope, IPv4 first."""
        found = [address for address in self.addresses if not address.startswith("fe80:")]
        return sorted(found, key=lambda address: ":" in address)


class Limits(Record, frozen=True, kw_only=True):
    """What a device can hold, asked of the device; inline is measured by making queue pairs."""

    qp_max: int
    qp_wr_max: int
    cq_max: int
    cqe_max: int
    mr_max: int
    mr_bytes_max: int
    sge_max: int
    rd_atomic_max: int  # outstanding READs and atomics that one queue pair answers
    atomics: str  # "none", "device" (among queue pairs of this device), "system"
    inline_bytes_max: int  # the largest request that a queue pair was made with
    inline_bytes_granted: int  # what that queue pair got
    pages_on_demand: bool = False  # memory that is written to need not be locked


class Device(Record, frozen=True, kw_only=True):
    """An RDMA device."""

    name: str
    transport: str  # "InfiniBand", "RoCE", "iWARP", or the kernel's word for another
    driver: str
    firmware: str
    node_guid: str
    uverbs: str  # "/dev/infiniband/uverbs0"; "": none
    can_open: bool  # may we read and write that
    ports: list[Port]
    limits: Limits | None = None
    limits_unknown: str = ""  # why `limits` is None

    @property
    def has_write_with_imm(self) -> bool:
        """iWARP has no RDMA WRITE WITH IMM (RFC 5040)."""
        return self.transport != "iWARP"

    @property
    def hosts(self) -> list[str]:
        """The addresses that rdma_cm can bind to."""
        return [host for port in self.ports if port.is_active for host in port.hosts]


class Node(Record, frozen=True, kw_only=True):
    """The devices of one machine."""

    host: str
    devices: list[Device]
    rdma_core: str = ""  # whose is used and which, in words; "": none, or not known
    problem: str = ""  # why there are none, or why it could not be asked


class Cgroup(Record, frozen=True, kw_only=True):
    """The control groups that we are in."""

    kind: str  # "v2", "v1", "hybrid", "none"
    controllers: list[str] = []  # to be had for limits, in either version
    writable: list[str] = []  # directories of ours in which groups can be made
    has_kill: bool = False  # cgroup.kill somewhere among them


class Container(Record, frozen=True, kw_only=True):
    """What the configuration names for level `container`, as it is here."""

    registry_auth_error: str = ""  # "": it can be read, or none is named
    registry_auth_mode: int = 0o600
    store_error: str = ""  # "": trees can be kept there
    architecture: str = "amd64"  # of this machine, as images have it
    image: str = ""  # "here", "there" (in its registry), a cause of core/image.py, "unknown"
    image_said: str = ""  # by whom it was asked for


class Facts(Record, frozen=True, kw_only=True):
    """All that `checks.py` judges by."""

    host: str
    kernel: str
    is_root: bool
    python: str
    native_missing: dict[str, str] = {}  # module: the loader's words
    native_verbs: bool = False  # there is a native module for RDMA
    cores: int
    cores_isolated: str = ""
    governors: list[str] = []
    shm_bytes_free: int | None = None
    shm_error: str = ""
    memfd_error: str = ""
    memlock_bytes: int = -1  # -1: no limit
    memlock_bytes_hard: int = -1
    ignores_memlock: bool = False  # CAP_IPC_LOCK
    open_files_hard: int = -1  # -1: no limit
    modules: dict[str, str] = {}  # name: "there", "loadable", "absent"
    libraries: dict[str, str] = {}  # name: "" or the loader's words
    rdma_core: str = ""  # whose is used and which, in words; "": not known
    pyverbs: str = ""  # where it is; "": cannot be imported
    pyverbs_error: str = ""
    devices: list[Device] = []
    netdevs: list[str] = []  # that could carry SoftRoCE: up, with an address, not `lo`
    huge_pages: int = 0
    huge_pages_free: int = 0
    huge_page_bytes: int = 0
    clock_source: str = ""
    clock_sources: list[str] = []  # that could be taken instead
    is_clock_synchronised: bool | None = None
    cgroup: Cgroup = Cgroup(kind="none")
    user_namespace_error: str = ""  # "": they can be made
    landlock_abi: int = 0  # 0: none
    has_seccomp_filter: bool = False
    programs: dict[str, str] = {}  # name: where it is; "": not here
    bubblewrap_error: str = ""  # "": bwrap confines
    container: Container = Container()
    gpus: dict[str, str] = {}  # name: its UUID or index
    gpus_left_out: list[str] = []  # in words
    gpu_nodes_closed: list[str] = []  # that a worker in a sandbox cannot open


class Wants(Record, frozen=True, kw_only=True):
    """What the configuration asks of the machine."""

    window_bytes: int  # that one lane has the NIC reach
    slots: int
    slot_bytes: int
    knows_verbs: bool = True  # lane.transport may be "verbs"
    degrade: Sequence[str] = ()  # parts that a sandbox may lack: `sandbox.degrade`
    engine: str = "auto"  # container.engine, and what follows of that section
    docker_rdma_sriov: bool = False
    registry_auth: str = ""
    store: str = ""
    image: str = ""  # lease.image


class Finding(Record, frozen=True, kw_only=True):
    """What one check found."""

    check: str
    text: str
    blocks: Sequence[str] = ()  # what cannot work because of it
    is_hint: bool = False  # works, could be better
    mend: Sequence[str] = ()  # commands, or what to do
