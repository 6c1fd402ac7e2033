"""Facts in, findings out: what stands between a machine and a working set-up.

Each check is a function of the facts and of what the configuration wants; none asks the
system anything, so that recorded facts of any machine can be judged anywhere.  A new
check is a function here and its name in CHECKS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

from rfaas.diagnose.containers import CONTAINERS, bubblewrap
from rfaas.diagnose.records import Device, Facts, Finding, Wants
from rfaas.units import format_bytes

USES = ("shm", "verbs", "sandbox", "container")  # what may be blocked; --need takes one
PYTHON_MIN = (3, 10)
LANDLOCK_ABI_WANTED = 4  # the first that holds TCP; landlock(7)
FILES_OF_EXECUTOR, FILES_PER_WORKER = 24, 8  # with its links, and one client's for each worker
SHM_BYTES_LOW = 64 << 20
CLOCKS = ("tsc", "arch_sys_counter", "kvm-clock")  # read without a system call


Check = Callable[[Facts, Wants], Iterator[Finding]]


def examine(facts: Facts, wants: Wants) -> list[Finding]:
    """All findings in the order of CHECKS."""
    return [found for check in CHECKS for found in check(facts, wants)]


def blocked(findings: list[Finding]) -> dict[str, bool]:
    """What cannot work, by use."""
    return {use: any(use in found.blocks for found in findings) for use in USES}


# -- the machine itself -------------------------------------------------------


def python(facts: Facts, wants: Wants) -> Iterator[Finding]:
    """The interpreter and our native modules."""
    version = tuple(int(part) for part in facts.python.split(".")[:2])
    if version < PYTHON_MIN:
        yield Finding(
            check="python",
            text=f"Python is {facts.python}, and rFaaS needs 3.10 or newer",
            blocks=USES,
            mend=["make build PYTHON=python3.12"],
        )
    for module, error in facts.native_missing.items():
        yield Finding(
            check="python",
            text=f"the native module {module} does not load: {error}",
            blocks=USES,
            mend=["make build"],
        )
    if version >= PYTHON_MIN and not facts.native_missing:
        yield Finding(check="python", text=f"Python {facts.python}; the native modules load")


def shared_memory(facts: Facts, wants: Wants) -> Iterator[Finding]:
    """memfd for rings, /dev/shm for buffers of other libraries."""
    if facts.memfd_error:
        yield Finding(
            check="shared memory",
            text=f"memfd_create with seals fails: {facts.memfd_error}",
            blocks=USES,
            mend=["a kernel with CONFIG_MEMFD_CREATE, or a container that allows memfd_create(2)"],
        )
        return
    if facts.shm_bytes_free is None:
        text, mend = f"memfd works; no /dev/shm: {facts.shm_error}", "mount -t tmpfs tmpfs /dev/shm"
        yield Finding(check="shared memory", text=text, is_hint=True, mend=(mend,))
        return
    free = format_bytes(facts.shm_bytes_free)
    is_low = facts.shm_bytes_free < SHM_BYTES_LOW
    yield Finding(
        check="shared memory",
        text=f"memfd can be sealed; /dev/shm has {free} free",
        is_hint=is_low,
        mend=["mount -o remount,size=50% /dev/shm"] if is_low else [],
    )


def cores(facts: Facts, wants: Wants) -> Iterator[Finding]:
    """How many, how quiet, how fast."""
    text = f"{facts.cores} to run on"
    if facts.cores_isolated:
        text += f"; isolated: {facts.cores_isolated}"
    mend = []
    if facts.cores < 2:
        text += "; a hot client and a hot worker would take turns on it"
        mend.append("set lane.hot_timeout_ms to 0, or use a machine with two cores or more")
    slow = [name for name in facts.governors if name not in ("performance", "schedutil")]
    if slow:
        text += f"; their frequency is governed by {', '.join(slow)}"
        mend.append("cpupower frequency-set -g performance")
    yield Finding(check="cores", text=text, is_hint=bool(mend), mend=mend)


def clock(facts: Facts, wants: Wants) -> Iterator[Finding]:
    """Reading the time must be cheap; nodes that share leases should agree about it."""
    mend = []
    text = f"clock source {facts.clock_source or 'unknown'}"
    if facts.clock_source and facts.clock_source not in CLOCKS:
        text += ", which takes a system call to read"
        better = next((name for name in CLOCKS if name in facts.clock_sources), "")
        if better:
            file = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
            mend.append(f"echo {better} >{file}")
    if facts.is_clock_synchronised is False:
        text += "; not synchronised (leases count on each node's own clock; logs will differ)"
        mend.append("systemctl enable --now chrony")
    elif facts.is_clock_synchronised:
        text += "; synchronised"
    yield Finding(check="clock", text=text, is_hint=bool(mend), mend=mend)


def huge_pages(facts: Facts, wants: Wants) -> Iterator[Finding]:
    """Fewer entries in the tables of the processor and of the card, for large slots."""
    if facts.huge_pages_free and facts.huge_page_bytes:
        size = format_bytes(facts.huge_page_bytes)
        text = f"{facts.huge_pages_free} of {facts.huge_pages} of {size} free"
        yield Finding(check="huge pages", text=text)
        return
    size_bytes = facts.huge_page_bytes or 2 << 20
    pages = -(-wants.window_bytes // size_bytes)
    yield Finding(
        check="huge pages",
        text="none free (rFaaS does not need them)",
        mend=[f"sysctl vm.nr_hugepages={pages}    # one lane's window"]
        if facts.huge_page_bytes
        else [],
    )


def open_files(facts: Facts, wants: Wants) -> Iterator[Finding]:
    """Descriptors: roles raise the soft limit to the hard one by themselves."""
    most = facts.open_files_hard
    workers = max(0, most - FILES_OF_EXECUTOR) // FILES_PER_WORKER
    text = f"at most {most}: enough for {workers} workers at once"
    if most < 0 or workers >= facts.cores:
        yield Finding(check="open files", text="no limit" if most < 0 else text)
        return
    yield Finding(
        check="open files",
        text=text,
        blocks=USES if not workers else (),
        is_hint=workers > 0,
        mend=["ulimit -Hn 65536    # as root; in a unit: LimitNOFILE=65536"],
    )


# -- what sandboxes are made of -------------------------------------------------


def namespaces(facts: Facts, wants: Wants) -> Iterator[Finding]:
    """User namespaces, which the others are made in."""
    if not facts.user_namespace_error:
        yield Finding(check="user namespaces", text="can be made")
        return
    yield Finding(
        check="user namespaces",
        text=f"cannot be made: {facts.user_namespace_error}",
        blocks=("sandbox",),
        mend=[
            "sysctl user.max_user_namespaces=15000",
            "sysctl kernel.unprivileged_userns_clone=1    # Debian's switch, where it exists",
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0    # Ubuntu's",
        ],
    )


def landlock(facts: Facts, wants: Wants) -> Iterator[Finding]:
    """Which files and ports a function reaches."""
    if facts.landlock_abi >= LANDLOCK_ABI_WANTED:
        yield Finding(check="landlock", text=f"ABI {facts.landlock_abi}")
    elif facts.landlock_abi:
        text = f"ABI {facts.landlock_abi}: files, but not TCP (ABI {LANDLOCK_ABI_WANTED})"
        yield Finding(check="landlock", text=text, is_hint=True, mend=["Linux 6.7 or newer"])
    else:
        may_lack = "landlock" in wants.degrade
        yield Finding(
            check="landlock",
            text="the kernel has none" + (": sandboxes are without" if may_lack else ""),
            blocks=() if may_lack else ("sandbox",),
            is_hint=may_lack,
            mend=["boot with lsm=landlock,... (Linux 5.13 or newer; CONFIG_SECURITY_LANDLOCK)"],
        )


def seccomp(facts: Facts, wants: Wants) -> Iterator[Finding]:
    """Which system calls a function makes."""
    if facts.has_seccomp_filter:
        yield Finding(check="seccomp", text="filters can be set")
    else:
        yield Finding(
            check="seccomp",
            text="the kernel has no filters",
            blocks=("sandbox",),
            mend=["a kernel with CONFIG_SECCOMP_FILTER"],
        )


def cgroups(facts: Facts, wants: Wants) -> Iterator[Finding]:
    """Limits on memory and processes, and killing all of a group at once."""
    group = facts.cgroup
    missing = [name for name in ("memory", "pids", "cpuset") if name not in group.controllers]
    may_lack = "cgroup" in wants.degrade
    text = group.kind if group.kind != "none" else "none mounted"
    if group.controllers:
        text += f" with {', '.join(group.controllers)}"
    text += "; writable" if group.writable else "; not writable"
    if group.writable and not missing and group.has_kill:
        yield Finding(check="cgroups", text=text)
        return
    mend = []
    if not group.writable:
        mend.append("systemd-run --user --scope -p Delegate=yes rfaas serve --role executor")
    if missing:
        text += f"; no {', '.join(missing)}: those limits are resource limits only"
    if not group.has_kill:
        text += "; no cgroup.kill (version 2, Linux 5.14)"
    is_whole = group.writable and not missing
    if not is_whole:
        text += "; processes and sandboxes are without" if may_lack else ""
    yield Finding(
        check="cgroups",
        text=text,
        blocks=() if may_lack or is_whole else ("sandbox",),
        is_hint=True,
        mend=mend,
    )


# -- RDMA -----------------------------------------------------------------------


def modules(facts: Facts, wants: Wants) -> Iterator[Finding]:
    """The kernel's side of verbs; a device has its own module beside."""
    about = {
        "ib_uverbs": "programs cannot reach devices",
        "rdma_ucm": "programs cannot connect through librdmacm",
    }
    missing = {name: why for name, why in about.items() if facts.modules.get(name) != "there"}
    if not missing:
        yield Finding(check="kernel modules", text="ib_uverbs and rdma_ucm are there")
    for name, why in missing.items():
        yield Finding(
            check="kernel modules",
            text=f"no {name}: {why}",
            blocks=("verbs",),
            mend=[_load(name, facts)],
        )


def libraries(facts: Facts, wants: Wants) -> Iterator[Finding]:
    """libibverbs and librdmacm; pyverbs for what `rfaas devices` asks a device."""
    missing = [name for name, error in facts.libraries.items() if error]
    for name in missing:
        yield Finding(
            check="libraries",
            text=f"{name}: {facts.libraries[name]}",
            blocks=("verbs",),
            mend=["apt-get install libibverbs1 librdmacm1 ibverbs-providers"],
        )
    if not missing:
        where = f"; pyverbs in {facts.pyverbs}" if facts.pyverbs else ""
        whose = f": {facts.rdma_core}" if facts.rdma_core else ""
        yield Finding(check="libraries", text=f"{' and '.join(facts.libraries)} load{whose}{where}")
    if not facts.pyverbs:
        yield Finding(
            check="pyverbs",
            text=f"{facts.pyverbs_error or 'none'}; limits of devices stay unknown",
            is_hint=True,
            mend=["apt-get install python3-pyverbs"],
        )


def devices(facts: Facts, wants: Wants) -> Iterator[Finding]:
    """Whether one of them can be used; if not, what is wrong with each."""
    if not facts.devices:
        yield Finding(
            check="device",
            text="no RDMA device: neither a card that the kernel drives nor one in software",
            blocks=("verbs",),
            mend=_software_device(facts),
        )
        return
    faults = {device.name: list(_faults(device, facts)) for device in facts.devices}
    has_good = any(not found for found in faults.values())
    for device in facts.devices:
        if not faults[device.name]:
            address = device.hosts[0]
            text = f"{device.name}: {device.transport}, active, {address}"
            yield Finding(check="device", text=text)
        for text, mend in faults[device.name]:
            yield Finding(
                check="device",
                text=f"{device.name}: {text}",
                blocks=() if has_good else ("verbs",),
                is_hint=has_good,
                mend=mend,
            )


def _faults(device: Device, facts: Facts) -> Iterator[tuple[str, list[str]]]:
    """Why a device cannot be used, and what mends it; one cause at a time."""
    port = next((port for port in device.ports if port.is_active), None) or next(
        iter(device.ports), None
    )
    netdev = port.netdev if port else ""
    if port is None:
        yield "it has no port", []
    elif not device.has_write_with_imm:
        yield "iWARP has no RDMA WRITE WITH IMM, which invocations are", _software_device(facts)
    elif not device.uverbs:
        yield "programs cannot reach it: no uverbs node", [_load("ib_uverbs", facts)]
    elif not device.can_open:
        yield f"no permission for {device.uverbs}", [f"chmod 666 {device.uverbs}"]
    elif not port.is_netdev_here:
        yield f"its interface {netdev} is in another network namespace", []
    elif not port.is_netdev_up:
        yield f"port {port.state}: {netdev} is down", [f"ip link set {netdev} up"]
    elif not port.is_active:
        mend = ["systemctl start opensm    # on one node of the fabric"]
        yield (
            f"port {port.state} ({port.physical_state})",
            mend if port.link_layer == "InfiniBand" else ["see to the cable and the switch"],
        )
    elif not netdev:
        yield "no network interface (IPoIB) to take an address from", ["modprobe ib_ipoib"]
    elif not device.hosts:
        yield (
            f"no address on {netdev}: librdmacm connects by addresses",
            [f"ip address add 10.0.0.1/24 dev {netdev}    # one of your own"],
        )


def atomics(facts: Facts, wants: Wants) -> Iterator[Finding]:
    """FETCH_AND_ADD, by which accounting is kept."""
    for device in facts.devices:
        if device.limits and device.limits.atomics == "none":
            yield Finding(
                check="atomics",
                text=f"{device.name} has none: workers cannot add their counts to the executor's "
                "memory by FETCH_AND_ADD; it reads them from a page it shares with each instead",
                is_hint=True,
            )
        elif device.limits:
            reach = {"device": "among connections of the device", "system": "with the processor's"}
            text = f"{device.name}: {reach.get(device.limits.atomics, device.limits.atomics)}"
            yield Finding(check="atomics", text=text)


def memlock(facts: Facts, wants: Wants) -> Iterator[Finding]:
    """Memory that a NIC reaches is locked, and a limit may forbid that."""
    size = format_bytes(wants.window_bytes)
    lane = f"a lane of {wants.slots} slots of {format_bytes(wants.slot_bytes)} locks {size}"
    if facts.ignores_memlock or facts.memlock_bytes < 0:
        why = "no limit" if facts.memlock_bytes < 0 else "CAP_IPC_LOCK: the limit does not count"
        yield Finding(check="locked memory", text=f"{why}; {lane}")
        return
    limit = format_bytes(facts.memlock_bytes)
    usable = [device for device in facts.devices if device.hosts]
    if usable and all(device.limits and device.limits.pages_on_demand for device in usable):
        lane = lane.replace("locks", "has")
        text = f"limit {limit}; {lane}, and the device fetches them on demand"
        yield Finding(check="locked memory", text=text)
        return
    if facts.memlock_bytes >= wants.window_bytes:
        yield Finding(check="locked memory", text=f"limit {limit}; {lane}")
        return
    slot_bytes = facts.memlock_bytes // (2 * wants.slots) // 4096 * 4096
    raise_it = "ulimit -l unlimited"
    if 0 <= facts.memlock_bytes_hard < wants.window_bytes:
        raise_it = (
            "echo '* - memlock unlimited' >/etc/security/limits.d/rfaas.conf    # log in anew"
        )
    yield Finding(
        check="locked memory",
        text=f"limit {limit}, and {lane}",
        blocks=("verbs",),
        mend=[
            raise_it,
            # Daemons do not read limits.d: neither ours nor slurmd, whose jobs have its limits.
            "LimitMEMLOCK=infinity    # in the [Service] of a systemd unit, slurmd's too",
            *([f"or smaller slots: --set lane.slot_bytes={slot_bytes}"] if slot_bytes else []),
        ],
    )


def transport(facts: Facts, wants: Wants) -> Iterator[Finding]:
    """Whether this rFaaS speaks verbs at all."""
    if not facts.native_verbs:
        yield Finding(
            check="transport",
            text="this rFaaS was built without verbs",
            blocks=("verbs",),
            mend=["apt-get install libibverbs-dev librdmacm-dev", "make build"],
        )
    elif not wants.knows_verbs:
        yield Finding(
            check="transport",
            text='no transport "verbs" can be configured in this version',
            blocks=("verbs",),
        )


def _load(module: str, facts: Facts) -> str:
    if facts.modules.get(module) == "absent":
        return f"a kernel with {module}: this one ({facts.kernel}) has no such module"
    return f"modprobe {module}"


def _software_device(facts: Facts) -> list[str]:
    """How to come to a SoftRoCE device."""
    netdev = next(iter(facts.netdevs), "eth0")
    taken = {device.name for device in facts.devices}
    name = next(name for number in count() if (name := f"rxe{number}") not in taken)
    link = f"rdma link add {name} type rxe netdev {netdev}"
    if facts.modules.get("rdma_rxe") == "absent":
        return [
            f"a kernel with rdma_rxe: this one ({facts.kernel}) has no such module",
            "or a machine of its own for tests: packaging/softroce/run COMMAND",
        ]
    return [link] if facts.modules.get("rdma_rxe") == "there" else ["modprobe rdma_rxe", link]


def gpus(facts: Facts, wants: Wants) -> Iterator[Finding]:
    """What a node could lend."""
    names = ", ".join(f"{name} ({visible})" for name, visible in facts.gpus.items())
    yield Finding(check="GPUs", text=names or "none to lend")
    for why in facts.gpus_left_out:
        yield Finding(check="GPUs", text=why)
    if facts.gpu_nodes_closed:
        nodes = " ".join(facts.gpu_nodes_closed)
        yield Finding(
            check="GPUs",
            text=f"a worker in a sandbox cannot open {nodes}: nobody's groups do not count there",
            mend=[f"chmod 0666 {nodes}   # for good: a rule of udev(7) with MODE"],
        )


CHECKS: tuple[Check, ...] = (
    *(python, shared_memory, cores, clock, huge_pages, open_files),
    *(namespaces, landlock, seccomp, cgroups),
    *(bubblewrap, *CONTAINERS, gpus),
    *(modules, libraries, devices, atomics, memlock, transport),
)
