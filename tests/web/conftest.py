"""A resource manager with two nodes and its web, shared by the tests of a module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.functions.build import build_library, build_shipped
from tests.harness.gate import Gate
from tests.harness.site import Site
from tests.web.http import Web, serve


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where libraries are built, once each."""
    return tmp_path_factory.mktemp("libraries")


@pytest.fixture(scope="session")
def shipped(libraries: Path) -> Path:
    """The functions that ship."""
    return build_shipped(libraries)


@pytest.fixture(scope="session")
def counter(libraries: Path) -> Path:
    """Functions that behave."""
    return build_library(libraries, "counter")


@pytest.fixture(scope="session")
def held(libraries: Path) -> Path:
    """Functions that say when they have begun."""
    return build_library(libraries, "held")


@pytest.fixture(scope="session")
def hostile(libraries: Path) -> Path:
    """Functions that misbehave."""
    return build_library(libraries, "hostile")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """The web of a manager with an executor that has two cores."""
    site = Site(tmp_path_factory.mktemp("site"))
    yield serve(site, "all")
    site.close()


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site of the test's own."""
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
