"""What the tests of bubblewrap and containers share: an image, a registry, a node."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rfaas.client import Session
from tests.e2e.conftest import gate, held, hostile, libraries, no_mapped_rings, shipped, site
from tests.harness import images, registry
from tests.harness.processes import Child, descendants
from tests.harness.registry import Registry
from tests.harness.site import Site

__all__ = ["gate", "held", "hostile", "libraries", "no_mapped_rings", "shipped", "site"]

GONE = ("", "rfaas-zygote")
BASE = ("bubblewrap", "runc", "crun", "podman")


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> images.Layout:
    """A small image, with what any function needs."""
    path = tmp_path_factory.mktemp("images") / "tiny"
    return images.Layout(path, [images.layer(images.system_libraries())])


@pytest.fixture(scope="session", autouse=True)  # before what looks for leaks of tests
def running_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry | None]:
    """A registry of this session, where one is installed."""
    if all(map(shutil.which, Registry.PROGRAMS)):
        made = Registry(tmp_path_factory.mktemp("registry"))
        yield made
        made.close()
    else:
        yield None


@pytest.fixture(scope="session")
def own_registry(running_registry: Registry | None, pytestconfig: pytest.Config) -> Registry:
    """The registry."""
    registry.require(pytestconfig, *Registry.PROGRAMS)
    assert running_registry is not None
    return running_registry


@pytest.fixture(scope="session")
def pushed(own_registry: Registry, layout: images.Layout) -> str:
    """The image's name in the registry."""
    return own_registry.push(layout, "group/tiny")


@pytest.fixture(scope="session")
def podman_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A storage.conf(5) for podman, away from the machine's own images."""
    path = tmp_path_factory.mktemp("podman")
    file = path / "storage.conf"
    file.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{path}/root"\nrunroot = "{path}/run"\n'
    )
    yield file
    if shutil.which("podman"):  # it unmounts what it mounted
        environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "CONTAINERS_STORAGE_CONF": str(file)}
        reset = ["podman", "system", "reset", "--force"]
        subprocess.run(reset, env=environ, capture_output=True, check=False)


class Node:
    """An executor whose workers run at one level, and sessions with it."""

    def __init__(self, site: Site, engine: str) -> None:
        self.site = site
        self.engine = engine
        self.isolation = "bubblewrap" if engine == "bubblewrap" else "container"
        self.folders = site.runtime / "containers"
        self.executor: Child | None = None

    def start(self) -> Child:
        """The executor."""
        self.executor = self.site.start("executor")
        return self.executor

    def restart(self) -> None:
        """Anew, with what was set meanwhile."""
        assert self.executor is not None
        self.executor.signal(signal.SIGTERM)
        self.executor.wait()
        self.start()

    def session(self, **settings: object) -> Session:
        return self.site.session(
            client__executor=self.site.address("executor"),
            lease__isolation=self.isolation,
            **settings,
        )

    def processes(self) -> list[int]:
        """All below the executor but its zygote: keepers, engines, workers."""
        assert self.executor is not None
        return [pid for pid in descendants(self.executor.pid) if name_of(pid) not in GONE]

    def boxes(self) -> list[Path]:
        """Folders of containers that are there."""
        return sorted(self.folders.glob("rfaas-*")) if self.folders.exists() else []


def name_of(pid: int) -> str:
    """What a process calls itself; "" where it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def equip(request: pytest.FixtureRequest, site: Site, engine: str) -> None:
    """Configure a site for an engine, or for bubblewrap; skip where it is not here."""
    if engine == "bubblewrap":
        registry.require(request.config, "bwrap")
        return
    registry.require(request.config, engine)
    layout: images.Layout = request.getfixturevalue("layout")
    reference = layout.reference
    if engine == "podman":
        reference = request.getfixturevalue("pushed")
        own: Registry = request.getfixturevalue("own_registry")
        store: Path = request.getfixturevalue("podman_store")
        site.environ["CONTAINERS_STORAGE_CONF"] = str(store)
        site.set(container__registry_auth=own.auth, container__registry_insecure="true")
    site.set(container__engine=engine, lease__image=reference)


@pytest.fixture
def made(site: Site, request: pytest.FixtureRequest) -> Iterator[Node]:
    """A node with the engine that the test is parametrized by; not started."""
    node = Node(site, request.param)
    site.set(executor__resource_manager="none")
    equip(request, site, request.param)
    yield node
    site.close()
    assert node.boxes() == []


@pytest.fixture
def node(made: Node) -> Node:
    """The same, started."""
    made.start()
    return made
