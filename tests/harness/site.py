"""Real roles and clients as processes, on sockets in a directory of their own.

A `Site` is a machine with a configuration: what it starts is told by environment
where sockets, store and configuration are, and it ends exactly what it started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import rfaas.config
from rfaas.client import Session
from tests.harness.processes import PATIENCE_S, Child

TREE = Path(__file__).resolve().parents[2]
RFAAS = str(TREE / "rfaas.py")

# Spinning is for tests of spinning: two cores here serve workers, clients and pytest.
SETTINGS: Mapping[str, object] = {
    "resource_manager.heartbeat_s": 0.1,
    "resource_manager.missed_beats_max": 100,  # 10 s: a slow machine is no lost node
    "executor.cores": 2,
    "lane.hot_timeout_ms": 1,
    "lane.slot_bytes": 65536,
    "lease.memory": "64MiB",
    "sandbox.pool": 0,  # what waits there is in the way of tests that look for processes
    "lease.isolation": "process",  # test functions speak to tests by files; tests/e2e/test_hostile
    "http.address": "none",
}

_PRELUDE = """
import sys
sys.path.insert(0, {tree!r})
import rfaas
def say(*words):
    print(*words, flush=True)
"""


# How to run all of it over another transport; nothing else of the caller's comes through.
KEPT = (
    *("RFAAS_LANE_TRANSPORT", "RFAAS_LANE_SLOT_BYTES", "RFAAS_RDMA_DEVICE"),
    "RFAAS_EXECUTOR_ENDPOINT",
)


class Site:
    """See the module's docstring; `settings` are configuration keys that differ from SETTINGS."""

    def __init__(self, path: Path, **settings: object) -> None:
        self.path = path
        self.runtime = path / "run"
        self.state = path / "state"
        self.killed = False  # what is killed leaves its socket's file behind
        self.children: list[Child] = []
        clean = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("RFAAS_") or key in KEPT
        }
        self.environ = clean | {
            "HOME": str(path),
            "XDG_CONFIG_HOME": str(path),
            "RFAAS_RUNTIME_DIR": str(self.runtime),
            "RFAAS_STATE_DIR": str(self.state),
        }
        self.set(**settings)

    def set(self, **settings: object) -> None:
        """Change configuration keys, written section__key, for what is started from now on."""
        given = {key.replace("__", "."): value for key, value in settings.items()}
        for key, value in {**SETTINGS, **given}.items():
            if key in given or self._variable(key) not in self.environ:
                self.environ[self._variable(key)] = str(value)

    @staticmethod
    def _variable(key: str) -> str:
        return f"RFAAS_{key.replace('.', '_').upper()}"

    # Roles

    def start(self, role: str, *flags: str) -> Child:
        """A role, once it has said that it is ready."""
        child = self.start_unready(role, *flags)
        line = child.lines.next()
        if line is None:
            pytest.fail(f"{role} ended with status {child.wait()}:\n{child.stderr}")
        assert "ready" in line, line
        if role == "all":
            child.lines.until("executor ")  # it joins the manager, which comes first
        return child

    def start_unready(self, role: str, *flags: str, prefix: Sequence[str] = ()) -> Child:
        """A role that may not come up; `prefix` is a command that runs it."""
        return self._started([*prefix, RFAAS, "serve", "--role", role, *flags], role)

    def address(self, role: str = "resource-manager") -> str:
        """Where a role listens: "resource-manager", or "executor"."""
        name = "resource-manager" if role != "executor" else f"executor-{os.uname().nodename}"
        return f"unix:{self.runtime}/{name}.sock"

    def socket(self, role: str = "resource-manager") -> Path:
        """The file of that socket."""
        return Path(self.address(role).partition(":")[2])

    def kill(self, child: Child) -> None:
        """End a role as a power cut does."""
        self.killed = True
        child.signal(signal.SIGKILL)
        child.wait()

    # Clients

    def session(self, **settings: object) -> Session:
        """A session in this process, with this site's configuration."""
        overrides = {key.replace("__", "."): value for key, value in settings.items()}
        return Session(rfaas.config.load(None, self.environ, overrides).config)

    def private_session(self, **settings: object) -> Session:
        """The same with a private executor."""
        return self.session(client__executor="private", **settings)

    def run(
        self, *arguments: str | Path, stdin: bytes = b"", **environ: str
    ) -> subprocess.CompletedProcess[bytes]:
        """A command, run to its end."""
        return subprocess.run(
            [RFAAS, *map(str, arguments)],
            env=self.environ | environ,
            cwd=self.path,
            input=stdin,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def run_under(
        self, prefix: Sequence[str], *arguments: str | Path
    ) -> subprocess.CompletedProcess[bytes]:
        """The same, run by a command of the system: unshare(1), say."""
        return subprocess.run(
            [*prefix, RFAAS, *map(str, arguments)],
            env=self.environ,
            cwd=self.path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def command(self, *arguments: str | Path) -> Child:
        """A command, running."""
        return self._started([RFAAS, *map(str, arguments)], "command")

    def client(self, code: str, *arguments: str | Path, prefix: Sequence[str] = ()) -> Child:
        """A Python program that uses `rfaas`, has `say`, and `arguments` in `sys.argv[1:]`."""
        script = _PRELUDE.format(tree=str(TREE)) + code
        program = [sys.executable, "-c", script, *map(str, arguments)]
        return self._started([*prefix, *program], "client")

    # Ends

    def close(self) -> None:
        """End what was started, the latest first, and see that its files are gone."""
        statuses = []
        for child in reversed(self.children):
            if child.process.poll() is None:
                child.signal(signal.SIGTERM)
                statuses.append((child.wait(), child.stderr))
            child.close()
        self.children.clear()
        for status, text in statuses:
            assert status in (0, -signal.SIGTERM), text
        if not self.killed:
            left = sorted(self.runtime.glob("*.sock")) if self.runtime.exists() else []
            assert left == [], f"sockets left behind: {left}"

    def _started(self, command: list[str], name: str) -> Child:
        log = self.path / f"{name}-{len(self.children)}.log"
        child = Child(command, self.environ, log)
        self.children.append(child)
        return child
