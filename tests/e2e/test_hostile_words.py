"""What a function writes to the executor in its worker's name, over the worker's own link."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rfaas.errors import LibraryError, WorkerCrashedError
from rfaas.proto.codec import encode
from rfaas.proto.messages import Error, Message
from rfaas.proto.worker_messages import LanesLeft, LibraryLoaded, WorkerDied
from tests.functions.build import build_library
from tests.harness.hostile import Node, made
from tests.harness.site import Site

ENDLESS = 1 << 30  # times; it is ended before


@pytest.fixture(params=("sandbox", "process"))
def node(request: pytest.FixtureRequest, site: Site, counter: Path) -> Iterator[Node]:
    """A node that grants the level; what is left of an attack is looked for."""
    yield from made(site, request.param, counter)


def saying(libraries: Path, message: Message, times: int = 1) -> Path:
    """A library whose constructor says that, so many times."""
    frame = ",".join(map(str, encode(message)))
    return build_library(libraries, "speaker", f"-DFRAME={frame}", f"-DTIMES={times}")


@pytest.mark.parametrize(
    "message",
    [
        WorkerDied(pid=1, status=0),
        WorkerDied(pid=1, status=(1 << 64) - 1),
        LibraryLoaded(functions=("speak",)),
        LanesLeft(),
    ],
)
@pytest.mark.parametrize("function", ["speak", "speak_without_end"])
def test_it_ends_with_its_words(
    node: Node, libraries: Path, message: Message, function: str
) -> None:
    """Who says that its worker is dead does not live on, and keeps nobody waiting."""
    with node.lease(build_library(libraries, "speaker")) as lease:
        with pytest.raises(WorkerCrashedError, match=r"stopped: it said what nobody asked for$"):
            lease.call(function, encode(message))
        node.wait_until_gone()
        assert node.session.status().facts["leases"] == 2


def test_no_frame_at_all(node: Node, libraries: Path) -> None:
    with (
        node.lease(build_library(libraries, "speaker")) as lease,
        pytest.raises(WorkerCrashedError, match=r"stopped: it said what nobody asked for$"),
    ):
        lease.call("speak", b"\xff" * 64)


@pytest.mark.parametrize("code", ["peer-lost", "lease-ended", "library-missing", "internal"])
def test_errors_of_a_constructor(node: Node, libraries: Path, code: str) -> None:
    """Its client hears of it as of its library's, and need not wait for it."""
    library = saying(libraries, Error(code=code, text="a constructor's"))
    with pytest.raises(LibraryError, match="a constructor's"):
        node.lease(library)


@pytest.mark.parametrize(
    ("names", "words"),
    [((), "tells of functions without end"), (("f",) * 500, "more functions than there can be")],
)
def test_tables_without_end(
    node: Node, libraries: Path, names: tuple[str, ...], words: str
) -> None:
    library = saying(libraries, LibraryLoaded(functions=names, more=True), ENDLESS)
    with pytest.raises(LibraryError, match=words):
        node.lease(library)
