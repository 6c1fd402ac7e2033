"""`control.auth = "key"` on a whole site: roles and clients that have the cluster's key."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

import pytest

from rfaas.errors import ConfigError, NotPermittedError
from tests.harness.processes import until
from tests.harness.rdma import End
from tests.harness.site import Site

NETWORK = "tcp:127.0.0.1:0"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A file with a key."""
    path = tmp_path / "cluster.key"
    path.write_text(secrets.token_hex(32))
    path.chmod(0o600)
    return path


@pytest.fixture
def keyed(site: Site, key: Path) -> Site:
    """A site whose links are authenticated."""
    site.set(control__auth="key", control__key_file=key)
    return site


def started(site: Site, role: str, *flags: str) -> str:
    """Start a role; where it listens."""
    line = site.start_unready(role, *flags).lines.next() or ""
    found = re.search(r"ready on (\S+?)[,;] ", line)
    assert found, line
    return found[1]


def test_a_call(keyed: Site, shipped: Path, key: Path) -> None:
    """Nobody but the roles' own memory has the key: no command line, no environment."""
    keyed.start("resource-manager")
    keyed.start("executor")
    with keyed.session() as session, session.lease(library=shipped, cores=2) as lease:
        assert bytes(lease.call("echo", b"known")) == b"known"
        secret = key.read_bytes()
        family = descendants(os.getpid())
        assert len(family) >= 4  # manager, executor, zygote, worker
        for process in family:
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            assert secret not in told


def descendants(pid: int) -> list[Path]:
    """The processes below one."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [Path(f"/proc/{child}"), *descendants(int(child))]
    return found


def test_strangers_stay_outside(keyed: Site, tmp_path: Path) -> None:
    manager = started(keyed, "resource-manager", "--address", NETWORK)
    keyed.set(client__resource_manager=manager)
    with keyed.session() as session:
        assert session.nodes() == []
    with pytest.raises(NotPermittedError, match="does not say that it has the cluster's key"):
        keyed.session(control__auth="none")
    other = tmp_path / "other.key"
    other.write_text("00" * 32)
    other.chmod(0o600)
    with pytest.raises(NotPermittedError, match=r"peer at tcp:.* has another cluster's key"):
        keyed.session(control__key_file=str(other))
    keyed.set(control__key_file=other)
    flags = ("--address", NETWORK, "--resource-manager", manager)
    stranger = keyed.start_unready("executor", *flags)
    until(lambda: "has another cluster's key" in stranger.stderr, "the executor is refused")


def test_no_warning_where_links_are_authenticated(keyed: Site) -> None:
    manager = keyed.start_unready("resource-manager", "--address", "tcp:*:0")
    assert "ready on tcp:*:" in (manager.lines.next() or "")
    assert "not authenticated" not in manager.stderr
    keyed.set(control__auth="none")
    keyed.set(resource_manager__store=keyed.path / "another.db", http__address="none")
    open_to_all = keyed.start_unready("resource-manager", "--address", "tcp:*:0")
    assert "ready on tcp:*:" in (open_to_all.lines.next() or "")
    assert open_to_all.stderr.count("links are not authenticated") == 1
    assert 'hint: control.auth = "key"' in open_to_all.stderr


def test_a_key_that_others_can_read(keyed: Site, key: Path) -> None:
    key.chmod(0o644)
    for role in ("resource-manager", "executor"):
        child = keyed.start_unready(role)
        assert child.wait() == ConfigError.exit_status
        assert "others may read it (mode 0644)" in child.stderr
    with pytest.raises(ConfigError, match="others may read it"):
        keyed.session()


@pytest.mark.rdma
def test_all_of_it_over_rdma(keyed: Site, shipped: Path, rdma_ends: tuple[End, End]) -> None:
    client, server = rdma_ends
    device = ("--device", server.device)
    manager = started(keyed, "resource-manager", "--address", "verbs:*:0", *device)
    started(keyed, "executor", "--address", "verbs:*:0", "--resource-manager", manager, *device)
    asked = ("--resource-manager", manager, "--device", client.device, "--slot-bytes", "64KiB")
    (keyed.path / "input").write_bytes(b"known")
    done = keyed.run("call", *asked, shipped, "echo", "input")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"known", b"")
    keyed.set(control__auth="none")
    done = keyed.run("call", *asked, shipped, "echo", "input")
    assert done.returncode != 0
    assert b"does not say that it has the cluster's key" in done.stderr
