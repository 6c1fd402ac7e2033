"""The web of a resource manager: put together, started, stopped.

Where it cannot be had (the port is taken, the packages are missing) the manager
goes on without: that is said once, and the port is tried for again and again.
What is wrong with the configuration is an error, before anything starts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from ipaddress import ip_address

from rfaas import addresses
from rfaas.config import HttpConfig
from rfaas.errors import ConfigError, RfaasError
from rfaas.paths import system_text
from rfaas.web import access
from rfaas.web.api import Api, faulty
from rfaas.web.live import Live
from rfaas.web.server import Response, Server, Traffic
from rfaas.web.view import Fault, View

RETRY_S = 2.0

log = logging.getLogger("rfaas.http")


class Web:
    """It listens from `start` on; see the module's docstring."""

    def __init__(self, config: HttpConfig, view: View, *, make_keys: bool) -> None:
        """Read what is configured; `make_keys`: make the file of keys where there is none.

        Raises:
            ConfigError: it cannot be used.
        """
        at = addresses.parse(f"tcp:{config.address}")
        self._host, self._port = "" if at.host == addresses.ANY else at.host, at.port
        tls = _tls(config)
        if tls is None and not is_loopback(self._host):
            raise ConfigError(
                f"http.address is {config.address}, which others can reach, and there is no TLS",
                hint="set http.certificate and http.certificate_key, or listen at 127.0.0.1",
            )
        if make_keys:
            access.create(config.keys)
        self._keys = access.Keys(config.keys)
        self._live = Live(view)
        traffic = Traffic()
        api = Api(view, self._keys, self._live, traffic)
        self._server = Server(api.handle, _refused, tls, traffic)
        self._scheme = "https" if tls else "http"
        self._task: asyncio.Task[None] | None = None
        self.url = ""  # once it listens

    def start(self) -> str:
        """Listen, now or as soon as the port is free; returns what to tell people of it."""
        try:
            self._listen()
        except RfaasError as error:
            log.warning("%s; leases go on without it", error)
            self._task = asyncio.get_running_loop().create_task(self._again())
            return ""
        return f", page at {self.url} with a key of {self._keys.path}"

    async def close(self) -> None:
        """End all connections.  Can be called twice."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._live.close()
        await self._server.close()

    def _listen(self) -> None:
        host, port = self._server.listen(self._host, self._port)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"{self._scheme}://{shown}:{port}/"
        log.info("http at %s, keys in %s", self.url, self._keys.path)

    async def _again(self) -> None:
        while True:
            await asyncio.sleep(RETRY_S)
            try:
                self._listen()
            except RfaasError:  # it was said already
                continue
            return


def is_loopback(host: str) -> bool:
    """Whether nobody beyond this machine reaches that host's address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name: whose address it is today is no promise
        return False


def _tls(config: HttpConfig) -> ssl.SSLContext | None:
    if not config.certificate and not config.certificate_key:
        return None
    if not (config.certificate and config.certificate_key):
        raise ConfigError("http.certificate and http.certificate_key go together, one is missing")
    try:
        mode = os.stat(config.certificate_key).st_mode
        if mode & 0o077:
            raise ConfigError(
                f"{config.certificate_key} is a private key and others may read it "
                f"(mode {mode & 0o777:04o})",
                hint=f"`chmod 600 {config.certificate_key}`",
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(config.certificate, config.certificate_key)
    except ssl.SSLError as error:
        raise ConfigError(
            f"{config.certificate} and {config.certificate_key} are no certificate and its key: "
            f"{error.reason or error}"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"cannot read {config.certificate} and {config.certificate_key}: {system_text(error)}"
        ) from None
    return context


def _refused(status: int, text: str) -> Response:
    return faulty(status, Fault("protocol" if status < 500 else "capacity", text))
