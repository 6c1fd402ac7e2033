"""Where a role listens: an address says what carries its control links, and where to.

    unix:/absolute/path     processes of one machine, which can share memory as well
    tcp:HOST:PORT           a trusted network
    verbs:HOST:PORT         the same, over librdmacm and a NIC: RDMA

HOST is a name, an IPv4 address, an IPv6 address in brackets, or `*` for who
listens: all addresses of the machine, over verbs the one of its RDMA device.
PORT 0 is for who listens, too: any that is free.  Names are looked up by who
connects; here nothing is asked.
"""

from __future__ import annotations

from rfaas.errors import ConfigError
from rfaas.paths import socket_path

NETWORKS = ("tcp", "verbs")
ANY = "*"
PORT_MAX = 65535
FORMS = "unix:/absolute/path, tcp:HOST:PORT and verbs:HOST:PORT are allowed"

_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._")
_IPV6 = frozenset("0123456789abcdefABCDEF:.")
_HOST_CHARACTERS_MAX = 253  # of a name, RFC 1035


class Address:
    """An address taken apart; `path` of a Unix socket, else `host` (no brackets) and `port`."""

    __slots__ = ("host", "path", "port", "scheme")

    def __init__(self, scheme: str, path: str = "", host: str = "", port: int = 0) -> None:
        self.scheme = scheme
        self.path = path
        self.host = host
        self.port = port

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}:{host}:{self.port}"

    def at(self, host: str, port: int) -> Address:
        """The same kind of address elsewhere."""
        return Address(self.scheme, "", host, port)


def parse(text: str) -> Address:
    """The address that a text is.

    Raises:
        ConfigError: it is none; says what is wrong and what is allowed.
    """
    scheme, _, rest = text.partition(":")
    if scheme not in NETWORKS:
        if scheme != "unix" or not rest.startswith("/"):
            raise ConfigError(f"address is not understood ({text!r:.99}), {FORMS}")
        return Address("unix", socket_path(text))
    host, colon, port = rest.rpartition(":")
    if not colon or not _is_host(host):
        raise ConfigError(
            f"address is not understood ({text!r:.99}), {scheme}:HOST:PORT is allowed",
            hint="HOST is a name, an IPv4 address, an IPv6 address in brackets, or * to listen",
        )
    if not (port.isascii() and port.isdigit()) or int(port[:9]) > PORT_MAX:
        raise ConfigError(
            f"port of an address is wrong ({text!r:.99}), 0 to {PORT_MAX} are allowed"
        )
    return Address(scheme, "", host.strip("[]"), int(port[:9]))


def reachable(text: str) -> Address:
    """The same for who connects: `*` and port 0 say nothing to one.

    Raises:
        ConfigError: it is no address, or one to listen at.
    """
    address = parse(text)
    if address.scheme != "unix" and (address.host == ANY or not address.port):
        raise ConfigError(f"address {text} is one to listen at: it needs a host and a port")
    return address


def announced(text: str, host: str) -> str:
    """What others are told of an address: `host` in place of `*`, by which they reach us."""
    address = parse(text)
    return str(address.at(host, address.port)) if address.host == ANY else text


def is_local(text: str) -> bool:
    """Whether only this machine reaches an address: a Unix socket's."""
    return not text.startswith(tuple(f"{scheme}:" for scheme in NETWORKS))


def _is_host(host: str) -> bool:
    if host == ANY:
        return True
    if host[:1] == "[" and host[-1:] == "]":
        inner, percent, zone = host[1:-1].partition("%")  # of a link-local address
        is_zone = set(zone) <= _NAME and bool(zone or not percent)
        return ":" in inner and set(inner) <= _IPV6 and is_zone
    return 0 < len(host) <= _HOST_CHARACTERS_MAX and set(host) <= _NAME
