"""The same for a user who is not root: user namespaces, no control groups, rootless podman."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import rfaas
from tests.containers.conftest import BASE, Node, equip
from tests.harness.processes import Child, until
from tests.harness.site import RFAAS, Site

USER = 1234  # nobody on this machine
TREE = Path(rfaas.__file__).resolve().parents[1]
AS_USER = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
STORE = """
[storage]
driver = "overlay"
graphroot = "{path}/root"
runroot = "{path}/run"
[storage.options.overlay]
ignore_chown_errors = "true"
mount_program = "/usr/bin/fuse-overlayfs"
"""


def python_for_all() -> str:
    """A Python that the tree's modules are built for and that any user may run."""
    own = os.path.realpath(TREE / ".venv/bin/python")
    asked = "import os, sys; sys.exit(not os.access(sys.executable, os.X_OK))"
    for python in (own, shutil.which(os.path.basename(own), path="/usr/bin:/usr/local/bin")):
        if python and subprocess.run([*AS_USER, python, "-c", asked], check=False).returncode == 0:
            return python
    pytest.skip(f"user {USER} may not run {own}, and /usr/bin has no Python of its version")


@pytest.fixture
def user_site(site: Site) -> Iterator[Site]:
    """A site that belongs to another user; its clients are root."""
    if os.geteuid():
        pytest.skip("only root can be another user")
    shown = [site.path, *site.path.parents]
    for path in shown[: shown.index(Path("/tmp")) if Path("/tmp") in shown else 1]:
        path.chmod(0o755)
    site.runtime.mkdir()
    for path in (site.path, site.runtime):
        os.chown(path, USER, USER)
    yield site
    if shutil.which("podman"):  # its process that keeps the user's namespace
        migrate = [*AS_USER, "podman", "system", "migrate"]
        subprocess.run(migrate, env=site.environ, capture_output=True, check=False)


@pytest.mark.parametrize("engine", [one for one in BASE if one != "crun"])
def test_call(request: pytest.FixtureRequest, user_site: Site, shipped: Path, engine: str) -> None:
    site = user_site
    equip(request, site, engine)
    site.environ["XDG_RUNTIME_DIR"] = str(site.path)
    site.set(executor__resource_manager="none")
    if engine == "podman":
        if shutil.which("fuse-overlayfs") is None:
            pytest.skip("fuse-overlayfs is not installed: packaging/container-engines.sh does")
        store = site.path / "storage.conf"
        store.write_text(STORE.format(path=site.path))
        auth = site.path / "auth.json"
        shutil.copy(site.environ["RFAAS_CONTAINER_REGISTRY_AUTH"], auth)
        os.chown(auth, USER, USER)
        site.environ["CONTAINERS_STORAGE_CONF"] = str(store)
        site.set(container__registry_auth=auth)
    elif engine == "runc":
        share(Path(site.environ["RFAAS_LEASE_IMAGE"].removeprefix("oci:").partition("@")[0]))
    python = [python_for_all(), "-I", "-S", "-X", "rfaas", RFAAS]
    command = [*AS_USER, *python, "serve", "--role", "executor"]
    executor = Child(command, site.environ, site.path / "executor.log")
    site.children.append(executor)
    line = executor.lines.next()
    assert line is not None, executor.stderr
    node = Node(site, engine)
    node.executor = executor
    with node.session() as session, session.lease(library=shipped) as lease:
        assert bytes(lease.call("echo", b"x")) == b"x"
        for pid in node.processes():
            assert os.stat(f"/proc/{pid}").st_uid in (USER, 65534)
    until(lambda: not node.processes() and not node.boxes(), "the end of all containers")


def share(layout: Path) -> None:
    """Let others read an image."""
    for path in (layout, *layout.parents[:3]):
        path.chmod(0o755)
