"""What the contract of transports is run with; a transport's own tests add `carrier`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.functions.build import HERE as FUNCTIONS
from tests.functions.build import build_text
from tests.harness.rdma import lacking

pytest.register_assert_rewrite(
    *(f"tests.transport.contract{part}" for part in ("", "_faults", "_threads"))
)

from tests.transport.served import Gate, Serve, Served  # noqa: E402

PYTHONS = ("/usr/bin/python3",)  # of the distribution: pyverbs must match its libibverbs

if TYPE_CHECKING:
    from rfaas.transport import Transport
    from tests.harness.rdma import End


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of contract.c."""
    source = (Path(__file__).parent / "contract.c").read_text()
    here = f"-I{FUNCTIONS}"  # its includes are relative to a folder beside this one
    return build_text(tmp_path_factory.mktemp("libraries"), "contract", source, here)


@pytest.fixture(scope="session")
def verbs_ends(rdma_ends: tuple[End, End]) -> tuple[End, End]:
    """Two RDMA devices that are open already, as they stay for the life of a process."""
    from tests.transport.served_verbs import open_devices

    open_devices(rdma_ends[0])
    return rdma_ends


@pytest.fixture(scope="session")
def python(request: pytest.FixtureRequest) -> str:
    """A Python that has pyverbs."""
    working = ""
    for candidate in PYTHONS:
        found = subprocess.run(
            [candidate, "-c", "import pyverbs.cmid"], capture_output=True, check=False
        )
        if found.returncode == 0:
            working = candidate
    if not working:
        lacking(request.config, "no Python with pyverbs; Debian's package is python3-pyverbs")
    return working


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate; a test that wants one names it before `serve`, whose workers inherit it."""
    gate = Gate()
    yield gate
    gate.close()


@pytest.fixture
def serve(carrier: Transport, library: Path) -> Iterator[Serve]:
    """Starts what is served, as of `Served`; all of it is gone when the test is over."""
    started: list[Served] = []

    def start(**options: Any) -> Served:
        served = Served(carrier, options.pop("library", library), **options)
        started.append(served)
        return served

    yield start
    for served in started:
        served.close()
