"""A site that belongs to another user: no capability, no control group, user namespaces alone."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import rfaas
from tests.harness.images import Layout
from tests.harness.site import Site

USER = 1234  # nobody on this machine
TREE = Path(rfaas.__file__).resolve().parents[1]
AS_USER = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")


def program_for_all() -> tuple[str, ...]:
    """The words before a role's command that have any user run it."""
    return (*_shown(TREE), *AS_USER, _python_for_all(), "-I", "-S", "-X", "rfaas")


def _shown(tree: Path) -> tuple[str, ...]:
    """The words before a command for which a tree lies where any user may pass.

    A clone in root's home does not: for that command alone, something else lies over the home.
    """
    closed = next((one for one in reversed(tree.parents) if not one.stat().st_mode & 0o001), None)
    if closed is None:
        return ()
    show = (
        'mount --bind "$1" /mnt && mount -t tmpfs -o mode=755 tree "$2" && mkdir -p "$1" && '
        'mount --move /mnt "$1" && shift 2 && exec "$@"'
    )
    own = ("unshare", "--mount", "--propagation", "private", "sh", "-c", show, "sh")
    return (*own, str(tree), str(closed))


def _python_for_all() -> str:
    """A Python that the tree's modules are built for and that any user may run."""
    own = os.path.realpath(TREE / ".venv/bin/python")
    asked = "import os, sys; sys.exit(not os.access(sys.executable, os.X_OK))"
    for python in (own, shutil.which(os.path.basename(own), path="/usr/bin:/usr/local/bin")):
        command = [*_shown(TREE), *AS_USER, str(python), "-c", asked]
        if (
            python
            and subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0
        ):
            return python
    pytest.skip(f"user {USER} may not run {own}, and /usr/bin has no Python of its version")


def open_fuse(folder: Path) -> tuple[str, ...]:
    """The words before a command that have it find a /dev/fuse that any user may open.

    udev makes it so.  fuse-overlayfs, by which rootless podman mounts its images, wants one.
    """
    if not os.path.exists("/dev/fuse") or os.stat("/dev/fuse").st_mode & 0o006 == 0o006:
        return ()
    node = str(folder / "fuse")
    os.mknod(node, stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
    os.chmod(node, 0o666)
    own = ("unshare", "--mount", "--propagation", "private", "sh", "-c")
    return (*own, f'mount --bind {node} /dev/fuse && exec "$0" "$@"')


@contextmanager
def own_site() -> Iterator[Site]:
    """A site that is the user's; its clients stay root.

    Not where pytest has all others: what pytest makes is root's alone, and it sees to that anew as
    another one starts.
    """
    if os.geteuid():
        pytest.skip("only root can be another user")
    path = Path(tempfile.mkdtemp(prefix="rfaas-", dir="/tmp"))
    try:
        site = Site(path)
        site.runtime.mkdir()
        for one in (path, site.runtime):
            os.chown(one, USER, USER)
        site.environ["XDG_RUNTIME_DIR"] = str(path)
        try:
            yield site
        finally:
            site.close()
    finally:
        shutil.rmtree(path)


def own_image(site: Site, layout: Layout) -> None:
    """Have leases name a copy of an image that the user can read."""
    path = site.path / "image"
    shutil.copytree(layout.path, path)
    site.set(lease__image=f"oci:{path}@{layout.digest}")


def take_back(site: Site) -> None:
    """End what podman keeps for a user whom it has served: the process of his namespace."""
    if shutil.which("podman"):
        migrate = [*AS_USER, "podman", "system", "migrate"]
        subprocess.run(migrate, env=site.environ, capture_output=True, check=False)
