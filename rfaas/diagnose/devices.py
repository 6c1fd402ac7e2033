"""The RDMA devices of this machine.

What comes from where:

    sysfs (/sys/class/infiniband)   names, ports, states, speeds, GIDs, netdevs, drivers: needs
                                    neither libibverbs nor permission, and is there as soon as
                                    the kernel has a device
    rtnetlink                       the addresses of the netdevs, which rdma_cm binds to
    pyverbs                         limits, and how much a queue pair sends inline; without
                                    pyverbs, libibverbs or permission they are unknown, and
                                    `limits_unknown` says why
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from pathlib import Path

from rfaas.diagnose import netlink, pyverbs_import
from rfaas.diagnose.records import Device, Gid, Limits, Port

SYSFS = Path("/sys/class")
NO_GID = "0000:0000:0000:0000:0000:0000:0000:0000"
GIDS_MAX = 1 << 16
INLINE_BYTES_MAX = 4096  # no device is known to take more; ours never need it


def find_devices(
    sysfs: Path = SYSFS, *, with_limits: bool = True, gids_max: int = GIDS_MAX
) -> list[Device]:
    """The devices in the order of their names; none where the kernel has no RDMA.

    Args:
        sysfs: where the kernel's classes are; a recorded tree in tests.
        with_limits: open each device and ask; milliseconds for each.
        gids_max: so many entries of a port's table; the first tells its netdev, and a
            thousand take a second in a guest.
    """
    netdevs = netlink.interfaces() if sysfs == SYSFS else {}
    entries = sorted(_entries(sysfs / "infiniband"))
    found = [_device(entry, sysfs, netdevs, gids_max) for entry in entries]
    if not with_limits:
        return found
    return [_with_limits(device) for device in found]


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _read(file: Path) -> str:
    """A file of sysfs; nothing where there is none, or where the kernel has no answer."""
    try:
        return file.read_text(errors="replace").strip()
    except OSError:  # entries of a port's tables that are not in use: EINVAL
        return ""


def _word(file: Path) -> str:
    """`4: ACTIVE` -> `ACTIVE`."""
    return _read(file).rpartition(": ")[2]


def _device(
    entry: Path, sysfs: Path, netdevs: dict[str, netlink.Interface], gids_max: int
) -> Device:
    uverbs = next(
        (
            f"/dev/infiniband/{node.name}"
            for node in sorted(_entries(sysfs / "infiniband_verbs"))
            if _read(node / "ibdev") == entry.name
        ),
        "",
    )
    ports = [
        _port(port, entry, netdevs, gids_max)
        for port in sorted(_entries(entry / "ports"), key=lambda path: int(path.name))
    ]
    node_type = _word(entry / "node_type")
    layers = {port.link_layer for port in ports}
    if node_type == "RNIC":
        transport = "iWARP"
    elif node_type == "CA":
        transport = "RoCE" if layers == {"Ethernet"} else "InfiniBand"
    else:
        transport = node_type or "unknown"
    driver = entry / "device/driver"
    return Device(
        name=entry.name,
        transport=transport,
        # A device in software has no parent in the tree of hardware; its name tells by custom.
        driver=os.path.basename(os.path.realpath(driver)) if driver.exists() else "software",
        firmware=_read(entry / "fw_ver"),
        node_guid=_read(entry / "node_guid"),
        uverbs=uverbs,
        can_open=bool(uverbs) and os.access(uverbs, os.R_OK | os.W_OK),
        ports=ports,
    )


def _port(port: Path, device: Path, netdevs: dict[str, netlink.Interface], gids_max: int) -> Port:
    gids = []
    for entry in sorted(_entries(port / "gids"), key=lambda path: int(path.name))[:gids_max]:
        gid = _read(entry)
        if gid and gid != NO_GID:
            attributes = port / "gid_attrs"
            gids.append(
                Gid(
                    index=int(entry.name),
                    gid=gid,
                    kind=_read(attributes / "types" / entry.name),
                    netdev=_read(attributes / "ndevs" / entry.name),
                )
            )
    # IPoIB interfaces stand below the device, RoCE's and iWARP's in the table of GIDs.
    below = [entry.name for entry in sorted(_entries(device / "device/net"))]
    netdev = next((gid.netdev for gid in gids if gid.netdev), "") or next(iter(below), "")
    interface = netdevs.get(netdev)
    if interface and gids and not _is_of(interface, gids):
        interface = None  # of that name, but another's: names are unique in a namespace only
    lid = _read(port / "lid")
    return Port(
        number=int(port.name),
        state=_word(port / "state").lower(),
        physical_state=_word(port / "phys_state"),
        link_layer=_read(port / "link_layer"),
        speed=_read(port / "rate"),
        netdev=netdev,
        is_netdev_here=not netdev or not netdevs or interface is not None,
        is_netdev_up=interface is None or interface.is_up,
        addresses=list(interface.addresses) if interface else [],
        gids=gids,
        lid=int(lid, 16) if lid else 0,
    )


def _is_of(interface: netlink.Interface, gids: list[Gid]) -> bool:
    """Whether an Ethernet port's GIDs are the interface's: they are made of its addresses."""
    if not any(gid.netdev for gid in gids):
        return True  # InfiniBand: they are the card's own
    own = {
        ipaddress.ip_address(text) for text in (*interface.addresses, interface.link_local) if text
    }
    for gid in gids:
        address = ipaddress.IPv6Address(gid.gid)
        if (address.ipv4_mapped or address) in own:
            return True
    return False


def _with_limits(device: Device) -> Device:
    from msgspec.structs import replace

    try:
        return replace(device, limits=measure(device.name))
    except Exception as error:  # noqa: BLE001 - pyverbs' own have no common base but this
        return replace(device, limits_unknown=f"{error}".strip() or type(error).__name__)


def measure(name: str) -> Limits:
    """Open a device and ask; a few queue pairs are made for a moment.

    Raises:
        ImportError: no pyverbs.
        Exception: whatever pyverbs says where the device cannot be opened.
    """
    pyverbs_import.load_pyverbs()
    from pyverbs import enums
    from pyverbs.cq import CQ
    from pyverbs.device import Context
    from pyverbs.pd import PD
    from pyverbs.qp import QP, QPCap, QPInitAttr

    with Context(name=name) as context:
        said = context.query_device()
        paging = context.query_device_ex().odp_caps
        on_demand = bool(
            paging.general_caps & enums.IBV_ODP_SUPPORT
            and paging.rc_odp_caps & enums.IBV_ODP_SUPPORT_WRITE
        )
        with PD(context) as domain, CQ(context, 2) as queue:

            def granted(inline_bytes: int) -> int | None:
                cap = QPCap(max_send_wr=1, max_recv_wr=1, max_inline_data=inline_bytes)
                wanted = QPInitAttr(qp_type=enums.IBV_QPT_RC, scq=queue, rcq=queue, cap=cap)
                try:
                    with QP(domain, wanted) as pair:
                        return int(pair.query(enums.IBV_QP_CAP)[1].cap.max_inline_data)
                except Exception:  # noqa: BLE001 - PyverbsRDMAError: more than it takes
                    return None

            most, got = largest(granted, INLINE_BYTES_MAX)
        return Limits(
            qp_max=said.max_qp,
            qp_wr_max=said.max_qp_wr,
            cq_max=said.max_cq,
            cqe_max=said.max_cqe,
            mr_max=said.max_mr,
            mr_bytes_max=said.max_mr_size,
            sge_max=said.max_sge,
            rd_atomic_max=said.max_qp_rd_atom,
            atomics={0: "none", 1: "device", 2: "system"}.get(said.atomic_caps, "unknown"),
            inline_bytes_max=most,
            inline_bytes_granted=got,
            pages_on_demand=on_demand,
        )


def largest(granted: Callable[[int], int | None], most: int) -> tuple[int, int]:
    """The largest request from 0 to `most` that is granted, and what is granted for it.

    Args:
        granted: what a request gets, None where it is refused; once refused, every larger
            one is refused too.
    """
    if (got := granted(most)) is not None:
        return most, got
    low, high, best = 0, most, granted(0) or 0  # `high` is refused; 0 never is
    while high - low > 1:
        middle = (low + high) // 2
        if (got := granted(middle)) is None:
            high = middle
        else:
            low, best = middle, got
    return low, best
