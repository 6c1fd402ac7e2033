"""A registry of images on this machine, with a user and a password."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.harness.images import Layout
from tests.harness.processes import until

USER, PASSWORD = "rfaas", "secret"
_HASH = "$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"  # of it, by bcrypt
_CONFIG = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {path}/blobs}}}}
http: {{addr: "127.0.0.1:{port}"}}
auth: {{htpasswd: {{realm: rfaas, path: {path}/htpasswd}}}}
"""


def require(config: pytest.Config, *programs: str) -> None:
    """Skip where a program that the test needs is not here; with --require-engines fail."""
    missing = [program for program in programs if shutil.which(program) is None]
    if not missing:
        return
    what = f"{', '.join(missing)} not installed: packaging/container-engines.sh does"
    if config.getoption("--require-engines"):
        pytest.fail(f"--require-engines: {what}", pytrace=False)
    pytest.skip(what)


class Registry:
    """Docker's registry (package docker-registry); `auth` is a file with its credentials."""

    PROGRAMS = ("docker-registry", "skopeo")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.auth = path / "auth.json"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        (path / "htpasswd").write_text(f"{USER}:{_HASH}\n")
        (path / "config.yml").write_text(_CONFIG.format(path=path, port=port))
        with (path / "log").open("wb") as log:
            self.process = subprocess.Popen(
                ["docker-registry", "serve", str(path / "config.yml")], stdout=log, stderr=log
            )
        until(lambda: _answers(port), "an answer of the registry")
        login = ["skopeo", "login", "--tls-verify=false", "--authfile", str(self.auth)]
        self._run(*login, "--username", USER, "--password", PASSWORD, self.address)

    def push(self, layout: Layout, name: str) -> str:
        """Put an image there; the reference that a lease names it by."""
        copy = ["skopeo", "copy", "--preserve-digests", "--dest-tls-verify=false"]
        copy += ["--authfile", str(self.auth), f"oci:{layout.path}"]
        self._run(*copy, f"docker://{self.address}/{name}:1")
        return f"{self.address}/{name}@{layout.digest}"

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()

    def _run(self, *command: str) -> None:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
