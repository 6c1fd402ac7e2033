"""Asks this machine for all that `checks.py` judges by; decides nothing.

Each question has an answer where the thing asked for is missing: that is what is
being looked for.  Nothing is changed: what is tried (a memfd, a user namespace) is gone
when the answer is there.
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from rfaas.config import ContainerConfig
from rfaas.diagnose import (
    containers,
    devices,
    gpus,
    images,
    netlink,
    pyverbs_import,
    rdma_core,
)
from rfaas.diagnose.records import Cgroup, Container, Facts

NATIVE = ("_window", "_calls", "_worker")  # what every call needs
MODULES = {  # what is there where the module is, built in or loaded
    "ib_uverbs": "/sys/class/infiniband_verbs",
    "rdma_ucm": "/sys/class/misc/rdma_cm",
    "rdma_rxe": "/sys/module/rdma_rxe",
}
BUILT_IN = {"rdma_rxe": b" rxe_newlink"}  # a function of those that have no sign of their own
CLOCKS = "/sys/devices/system/clocksource/clocksource0"
CAP_IPC_LOCK = 14  # linux/capability.h
TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
LANDLOCK_CREATE_RULESET = 444  # linux/landlock.h; the number is the same everywhere
LANDLOCK_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
TIMEX_BYTES = 208  # struct timex, sys/timex.h; more does no harm


def gather(container: ContainerConfig | None = None, image: str = "") -> Facts:
    """Everything; some tens of milliseconds, and a question to the registry of an image.

    Args:
        container: what of the configuration is to be looked at.
        image: `lease.image`; "": none.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    huge = _meminfo()
    pyverbs, pyverbs_error = _pyverbs()
    shm_bytes, shm_error = _shared_memory()
    gpu = gpus.find()
    return Facts(
        host=os.uname().nodename,
        kernel=os.uname().release,
        is_root=os.geteuid() == 0,
        python=f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}",
        native_missing=_native_missing(),
        native_verbs=find_spec("rfaas.native._verbs") is not None,
        cores=len(os.sched_getaffinity(0)),
        cores_isolated=_read("/sys/devices/system/cpu/isolated"),
        governors=_governors(),
        shm_bytes_free=shm_bytes,
        shm_error=shm_error,
        memfd_error=_memfd_error(),
        memlock_bytes=-1 if soft == resource.RLIM_INFINITY else soft,
        memlock_bytes_hard=-1 if hard == resource.RLIM_INFINITY else hard,
        open_files_hard=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        # A user namespace hands out capabilities that do not count for this.
        ignores_memlock=_has_capability(CAP_IPC_LOCK) and _is_first_user_namespace(),
        modules={name: _module(name, sign) for name, sign in MODULES.items()},
        libraries={name: _library_error(name) for name in rdma_core.LIBRARIES},
        rdma_core=rdma_core.in_words(),
        pyverbs=pyverbs,
        pyverbs_error=pyverbs_error,
        devices=devices.find_devices(),
        netdevs=_netdevs(),
        huge_pages=huge.get("HugePages_Total", 0),
        huge_pages_free=huge.get("HugePages_Free", 0),
        huge_page_bytes=huge.get("Hugepagesize", 0) * 1024,
        clock_source=_read(f"{CLOCKS}/current_clocksource"),
        clock_sources=_read(f"{CLOCKS}/available_clocksource").split(),
        is_clock_synchronised=libc.adjtimex(ctypes.create_string_buffer(TIMEX_BYTES)) != TIME_ERROR,
        cgroup=read_cgroup(_read("/proc/self/cgroup"), _read("/proc/self/mountinfo")),
        user_namespace_error=_user_namespace_error(),
        landlock_abi=max(0, libc.syscall(LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_VERSION)),
        programs=containers.programs(),
        bubblewrap_error=containers.bubblewrap_error(),
        container=images.find(container, image) if container is not None else Container(),
        has_seccomp_filter=os.path.exists("/proc/sys/kernel/seccomp/actions_avail"),
        gpus={one.name: one.visible for one in gpu.gpus},
        gpus_left_out=gpu.left_out,
        gpu_nodes_closed=sorted({node for one in gpu.gpus for node in gpus.closed_nodes(one)}),
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def _native_missing() -> dict[str, str]:
    missing = {}
    for name in NATIVE:
        try:
            import_module(f"rfaas.native.{name}")
        except ImportError as error:
            missing[name] = str(error)
    return missing


def _governors() -> list[str]:
    folder = Path("/sys/devices/system/cpu/cpufreq")
    files = folder.glob("policy*/scaling_governor") if folder.is_dir() else []
    return sorted({_read(str(file)) for file in files} - {""})


def _shared_memory() -> tuple[int | None, str]:
    try:
        found = os.statvfs("/dev/shm")
    except OSError as error:
        return None, error.strerror or str(error)
    return found.f_bavail * found.f_frsize, ""


def _memfd_error() -> str:
    import fcntl

    try:
        descriptor = os.memfd_create("rfaas-doctor", os.MFD_ALLOW_SEALING)
    except (OSError, AttributeError) as error:
        return str(error)
    try:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except OSError as error:
        return str(error)
    finally:
        os.close(descriptor)
    return ""


def _has_capability(number: int) -> bool:
    for line in _read("/proc/self/status").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> number & 1)
    return False


def _is_first_user_namespace() -> bool:
    return _read("/proc/self/uid_map").split() == ["0", "0", "4294967295"]


def _module(name: str, sign: str) -> str:
    if os.path.exists(sign):
        return "there"
    folder = f"/lib/modules/{os.uname().release}"
    known = _read(f"{folder}/modules.dep") + _read(f"{folder}/modules.builtin")
    if f"/{name}.ko" in known:
        return "loadable"
    if name in BUILT_IN and BUILT_IN[name] in _symbols():
        return "there"
    return "absent"


def _symbols() -> bytes:
    try:
        return Path("/proc/kallsyms").read_bytes()
    except OSError:
        return b""


def _library_error(name: str) -> str:
    rdma_core.load()
    try:
        ctypes.CDLL(name)
    except OSError as error:
        return str(error).removeprefix(f"{name}: ")
    return ""


def _pyverbs() -> tuple[str, str]:
    try:
        return pyverbs_import.load_pyverbs(), ""
    except ImportError as error:
        return "", str(error)


def _netdevs() -> list[str]:
    return [
        interface.name
        for interface in netlink.interfaces().values()
        if interface.is_up and interface.name != "lo" and interface.addresses
    ]


def _meminfo() -> dict[str, int]:
    pairs = (line.split() for line in _read("/proc/meminfo").splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in pairs if len(words) > 1}


def read_cgroup(own: str, mounts: str) -> Cgroup:
    """What proc(5)'s `cgroup` and `mountinfo` say, and what of it can be written to."""
    paths = {}  # controllers, "" for version 2: our group's path
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        paths[controllers] = path
    kinds, found, writable, has_kill = set(), set[str](), [], False
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        place, kind, options = before.split()[4], after.split()[0], after.split()[-1]
        if kind not in ("cgroup", "cgroup2"):
            continue
        kinds.add(kind)
        if kind == "cgroup2":
            group = f"{place}{paths.get('', '/')}"
            found |= set(_read(f"{group}/cgroup.controllers").split())
            has_kill = has_kill or _version() >= (5, 14)  # not in the root group, but in all below
        else:
            names = set(options.split(","))
            own_path = next((p for c, p in paths.items() if names & set(c.split(",")) - {""}), "/")
            group = f"{place}{own_path}"
            found |= names & {"cpu", "cpuset", "cpuacct", "memory", "pids", "freezer", "hugetlb"}
        if os.access(group, os.W_OK):
            writable.append(group.rstrip("/"))
    names_of = {
        frozenset(): "none",
        frozenset({"cgroup"}): "v1",
        frozenset({"cgroup2"}): "v2",
    }
    return Cgroup(
        kind=names_of.get(frozenset(kinds), "hybrid"),
        controllers=sorted(found),
        writable=sorted(set(writable)),
        has_kill=has_kill,
    )


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split(".")[:2])


def _user_namespace_error() -> str:
    """Try one: sysctls, security modules and containers each forbid them in their own way."""
    command = ["unshare", "--user", "--map-root-user", "true"]
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=5,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"status {done.returncode}"
