"""What the end-to-end tests share: libraries, and sites to run roles and clients on."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.functions.build import build_library, build_shipped
from tests.harness.gate import Gate
from tests.harness.site import Site
from tests.packaging.built import binary, program

__all__ = ["binary", "program"]


@pytest.fixture(scope="session", autouse=True)
def rdma_is_open(request: pytest.FixtureRequest) -> None:
    """With RFAAS_LANE_TRANSPORT=verbs: librdmacm keeps devices open, which is no test's leak."""
    if os.environ.get("RFAAS_LANE_TRANSPORT") == "verbs":
        from tests.transport.served_verbs import open_devices

        open_devices(request.getfixturevalue("rdma_ends")[0])


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where libraries are built, once each."""
    return tmp_path_factory.mktemp("libraries")


@pytest.fixture(scope="session")
def shipped(libraries: Path) -> Path:
    """The functions that ship."""
    return build_shipped(libraries)


@pytest.fixture(scope="session")
def hostile(libraries: Path) -> Path:
    """Functions that misbehave."""
    return build_library(libraries, "hostile")


@pytest.fixture(scope="session")
def counter(libraries: Path) -> Path:
    """Functions that behave."""
    return build_library(libraries, "counter")


@pytest.fixture(scope="session")
def held(libraries: Path) -> Path:
    """Functions that say when they have begun."""
    return build_library(libraries, "held")


@pytest.fixture(autouse=True)
def no_mapped_rings() -> Iterator[None]:
    """Fail the test that leaves a ring mapped: memory files have no name to be found by."""
    yield
    gc.collect()
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert [line for line in maps if "/memfd:rfaas" in line] == []


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site of the test's own; its path is short, as sockets' paths must be."""
    made = Site(tmp_path_factory.mktemp("site"))
    yield made
    made.close()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Callable[[], Gate]]:
    """Makes gates; see there."""
    made: list[Gate] = []

    def make() -> Gate:
        made.append(Gate(tmp_path / f"gate-{len(made)}"))
        return made[-1]

    yield make
    for one in made:
        one.close()
