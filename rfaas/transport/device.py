"""Which RDMA device to use: by its name, by its netdev, or the first that can.

`[rdma] device` names it; what is wrong with the choice is said before anything
is connected, with the devices that there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rfaas.errors import ConfigError, DeviceError, near

if TYPE_CHECKING:
    from rfaas.diagnose.records import Device

NONE_HINT = (
    "`rfaas doctor` says what is missing; `rdma link add rxe0 type rxe netdev eth0` makes a "
    "device in software"
)


GIDS_LOOKED_AT = 8  # of a port's table; its first entries name the netdev


class Choice(NamedTuple):
    """A device and the address of it that rdma_cm binds to."""

    name: str
    host: str


def choose(wanted: str) -> Choice:
    """The device called `wanted`, or of that netdev; "": the first that can be used.

    Raises:
        ConfigError: there is no device of that name.
        DeviceError: there is none at all, or it cannot be used; says why.
    """
    from rfaas.diagnose.devices import find_devices

    return _choose(wanted, find_devices(with_limits=False, gids_max=GIDS_LOOKED_AT))


def _choose(wanted: str, devices: list[Device]) -> Choice:
    if not devices:
        raise DeviceError("this machine has no RDMA device", hint=NONE_HINT)
    if wanted:
        named = [device for device in devices if wanted in _names(device)]
        if not named:
            names = [name for device in devices for name in _names(device)]
            raise ConfigError(
                f"rdma.device: there is no RDMA device or netdev {wanted!r}, "
                f"there is {', '.join(_described(device) for device in devices)}",
                hint=near(wanted, names),
            )
        devices = named
    faults = []
    for device in devices:
        fault = fault_of(device)
        if not fault:
            return Choice(device.name, _host(device))
        faults.append(f"{device.name}: {fault}")
    what = "the RDMA device cannot be used" if len(devices) == 1 else "no RDMA device can be used"
    raise DeviceError(f"{what}: {'; '.join(faults)}", hint="`rfaas doctor` says what to do")


def fault_of(device: Device) -> str:
    """Why calls cannot go over a device, or ""."""
    if not device.has_write_with_imm:
        return "iWARP has no RDMA WRITE WITH IMM, which calls are made of"
    if not any(port.is_active for port in device.ports):
        states = ", ".join(f"port {port.number} is {port.state}" for port in device.ports)
        return f"it is down ({states or 'it has no port'})"
    if not device.can_open:
        return f"this user may not open it ({device.uverbs or 'it has no device file'})"
    if not _host(device):
        netdevs = ", ".join(port.netdev for port in device.ports if port.netdev)
        return f"it has no IP address, which rdma_cm binds to (netdev {netdevs or 'none'})"
    return ""


def _host(device: Device) -> str:
    """An address to bind to; a link-local one would need a scope and is the last resort."""
    hosts = [host for port in device.ports if port.is_active for host in port.addresses]
    hosts = [host for host in hosts if not host.startswith("fe80:")]
    hosts.sort(key=lambda host: ":" in host)  # IPv4 first: what `ip` and people look at
    return hosts[0] if hosts else ""


def _names(device: Device) -> list[str]:
    return [device.name, *(port.netdev for port in device.ports if port.netdev)]


def _described(device: Device) -> str:
    name, *netdevs = _names(device)
    return f"{name} ({', '.join(netdevs)})" if netdevs else name
