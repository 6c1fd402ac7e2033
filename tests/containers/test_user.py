"""The same for a user who is not root: user namespaces, no control groups, rootless podman."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.conftest import BASE, Node, equip
from tests.harness import registry, users
from tests.harness.processes import Child, until
from tests.harness.site import RFAAS, Site

STORE = """
[storage]
driver = "overlay"
graphroot = "{path}/root"
runroot = "{path}/run"
[storage.options.overlay]
ignore_chown_errors = "true"
mount_program = "/usr/bin/fuse-overlayfs"
"""


@pytest.fixture
def user_site() -> Iterator[Site]:
    """A site that belongs to another user; its clients are root."""
    with users.own_site() as site:
        yield site
        users.take_back(site)


@pytest.mark.parametrize("engine", [one for one in BASE if one != "crun"])
def test_call(request: pytest.FixtureRequest, user_site: Site, shipped: Path, engine: str) -> None:
    site = user_site
    equip(request, site, engine)
    site.set(executor__resource_manager="none")
    if engine == "podman":
        registry.require(request.config, "fuse-overlayfs")
        store = site.path / "storage.conf"
        store.write_text(STORE.format(path=site.path))
        auth = site.path / "auth.json"
        shutil.copy(site.environ["RFAAS_CONTAINER_REGISTRY_AUTH"], auth)
        os.chown(auth, users.USER, users.USER)
        site.environ["CONTAINERS_STORAGE_CONF"] = str(store)
        site.set(container__registry_auth=auth)
    elif engine == "runc":
        users.own_image(site, request.getfixturevalue("layout"))
    command = [
        *users.open_fuse(site.path),
        *users.program_for_all(),
        RFAAS,
        "serve",
        "--role",
        "executor",
    ]
    executor = Child(command, site.environ, site.path / "executor.log")
    site.children.append(executor)
    line = executor.lines.next()
    assert line is not None, executor.stderr
    node = Node(site, engine)
    node.executor = executor
    with node.session() as session, session.lease(library=shipped) as lease:
        assert bytes(lease.call("echo", b"x")) == b"x"
        for pid in node.processes():
            assert os.stat(f"/proc/{pid}").st_uid in (users.USER, 65534)
    until(lambda: not node.processes() and not node.boxes(), "the end of all containers")
