"""The network interfaces of this namespace with all their addresses, from rtnetlink(7).

Asked of the kernel itself: `ip` need not be installed, and ioctl(2) tells one address each.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

# linux/rtnetlink.h, linux/netlink.h, linux/if_link.h, linux/if_addr.h
RTM_GETLINK, RTM_GETADDR = 18, 22
NLM_F_REQUEST, NLM_F_DUMP = 1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
IFLA_ADDRESS, IFLA_IFNAME, IFA_ADDRESS, IFA_LOCAL = 1, 3, 1, 2
IFF_UP = 1
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix, flags, scope, index
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type
RECEIVE_BYTES = 1 << 17


@dataclass
class Interface:
    """A network interface; `addresses` without their prefix lengths."""

    name: str
    is_up: bool
    link_local: str  # that which follows from its hardware address; "" without one
    addresses: list[str]


def interfaces() -> dict[str, Interface]:
    """By name; empty where the kernel does not answer."""
    found: dict[int, Interface] = {}
    try:
        for body in _dump(RTM_GETLINK):
            _, _, index, flags, _ = _LINK.unpack_from(body)
            attributes = _attributes(body, _LINK.size)
            name = attributes.get(IFLA_IFNAME, b"").rstrip(b"\0").decode()
            local = link_local(attributes.get(IFLA_ADDRESS, b""))
            found[index] = Interface(name, bool(flags & IFF_UP), local, [])
        for body in _dump(RTM_GETADDR):
            _, _, _, _, index = _ADDRESS.unpack_from(body)
            attributes = _attributes(body, _ADDRESS.size)
            raw = attributes.get(IFA_LOCAL) or attributes.get(IFA_ADDRESS, b"")
            if index in found and len(raw) in (4, 16):
                found[index].addresses.append(str(ipaddress.ip_address(raw)))
    except OSError:
        return {}
    return {interface.name: interface for interface in found.values()}


def link_local(mac: bytes) -> str:
    """fe80:: with the interface identifier of a hardware address: RFC 4291, appendix A."""
    if len(mac) != 6:
        return ""
    identifier = bytes([mac[0] ^ 2, *mac[1:3], 0xFF, 0xFE, *mac[3:]])
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + identifier))


def _dump(kind: int) -> Iterator[bytes]:
    """The bodies of the answers to "all of this kind"."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
        link.settimeout(5)
        body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        size = _HEADER.size + len(body)
        link.send(_HEADER.pack(size, kind, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + body)
        while True:
            data = link.recv(RECEIVE_BYTES)
            while len(data) >= _HEADER.size:
                size, answer, _, _, _ = _HEADER.unpack_from(data)
                if answer in (NLMSG_DONE, NLMSG_ERROR) or size < _HEADER.size:
                    return
                yield data[_HEADER.size : size]
                data = data[_aligned(size) :]


def _attributes(body: bytes, start: int) -> dict[int, bytes]:
    found = {}
    while len(body) - start >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(body, start)
        if size < _ATTRIBUTE.size:
            break
        found[kind] = body[start + _ATTRIBUTE.size : start + size]
        start += _aligned(size)
    return found


def _aligned(size: int) -> int:
    return (size + 3) & ~3  # NLMSG_ALIGN, RTA_ALIGN
