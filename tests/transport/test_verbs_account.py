"""Counts by FETCH_AND_ADD: they arrive, they are one worker's alone, and nothing else is open."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select
from typing import TYPE_CHECKING, Any

import pytest

from rfaas.proto import wire
from rfaas.transport import ring, verbs_errors
from tests.harness.rdma import End
from tests.transport.verbs_tools import apart, held

if TYPE_CHECKING:
    from rfaas.native._verbs import AccountPages

pytestmark = pytest.mark.rdma

LANES = 3
WORDS = LANES * wire.ACCOUNT_LANE_BYTES // 8
LINES = struct.Struct(f"<{WORDS}Q")
TIMEOUT_S = 5.0


@contextmanager
def listening(end: End) -> Iterator[AccountPages]:
    """The executor's side, served by a thread."""
    pages: AccountPages = verbs_errors.load().AccountPages(end.address)
    over, end_it = os.pipe()

    def attend() -> None:
        while over not in select([over, pages.fileno()], [], [])[0]:
            pages.step()

    thread = threading.Thread(target=attend)
    thread.start()
    try:
        yield pages
    finally:
        os.close(end_it)
        thread.join()
        pages.close()
        os.close(over)


def test_lines_are_the_same_as_of_the_last_telling(verbs_ends: tuple[End, End]) -> None:
    apart(tell_lines, verbs_ends)


def tell_lines(client: End, server: End) -> None:
    native, fd = verbs_errors.load(), ring.create_account(LANES)
    with listening(server) as pages:
        assert pages.has_atomics
        page = pages.page(LANES)
        place = (server.address, pages.port, page.secret, TIMEOUT_S)
        teller = native.Teller(fd, LANES, *place)
        assert page.read() == bytes(LINES.size)
        top = 2**64 - 1
        for lines in (
            [0] * WORDS,
            list(range(WORDS)),
            [top] * WORDS,
            [7] + [0] * (WORDS - 1),  # busy_since goes back to 0
            [top, 1] * (WORDS // 2),
        ):
            os.pwrite(fd, LINES.pack(*lines), 0)
            assert teller.tell(TIMEOUT_S)
            assert page.is_told
            assert list(LINES.unpack(page.read())) == lines
        os.pwrite(fd, LINES.pack(*range(WORDS)), 0)
        assert list(LINES.unpack(page.read())) != list(range(WORDS)), "it was not told"
        pages.close_page(page)
        assert not teller.tell(TIMEOUT_S)
        assert not teller.tell(TIMEOUT_S)
        teller.close()
        teller.close()


def test_one_page_is_not_another(verbs_ends: tuple[End, End]) -> None:
    apart(two_pages, verbs_ends)


def two_pages(client: End, server: End) -> None:
    native, fds = verbs_errors.load(), [ring.create_account(1) for _ in range(2)]
    with listening(server) as pages:
        both = [pages.page(1) for _ in fds]
        for number, fd, page in zip((1, 2), fds, both, strict=True):
            teller = native.Teller(fd, 1, server.address, pages.port, page.secret, TIMEOUT_S)
            os.pwrite(fd, struct.pack("<Q", number), wire.ACCOUNT_CALLS)
            assert teller.tell(TIMEOUT_S)
            teller.close()
        calls = [struct.unpack_from("<Q", page.read(), wire.ACCOUNT_CALLS)[0] for page in both]
        assert calls == [1, 2]


def test_who_is_refused(verbs_ends: tuple[End, End]) -> None:
    apart(refused, verbs_ends)


def refused(client: End, server: End) -> None:
    native, fd = verbs_errors.load(), ring.create_account(1)
    with listening(server) as pages:
        page = pages.page(1)
        place = (fd, 1, server.address, pages.port)
        with pytest.raises(native.Trouble) as wrong:
            native.Teller(*place, bytes(wire.SECRET_BYTES), TIMEOUT_S)
        assert wrong.value.event == "RDMA_CM_EVENT_REJECTED"
        teller = native.Teller(*place, page.secret, TIMEOUT_S)
        with pytest.raises(native.Trouble):  # it is taken
            native.Teller(*place, page.secret, TIMEOUT_S)
        assert teller.tell(TIMEOUT_S)
        pages.close_page(page)
        with pytest.raises(native.Trouble):  # it is over
            native.Teller(*place, page.secret, TIMEOUT_S)


def test_connections_leave_nothing(verbs_ends: tuple[End, End]) -> None:
    apart(tell_again_and_again, verbs_ends)


def tell_again_and_again(client: End, server: End) -> None:
    native, fd = verbs_errors.load(), ring.create_account(1)

    def once(pages: AccountPages) -> None:
        page = pages.page(1)
        teller = native.Teller(fd, 1, server.address, pages.port, page.secret, TIMEOUT_S)
        assert teller.tell(TIMEOUT_S)
        teller.close()
        pages.close_page(page)

    with listening(server) as pages:
        once(pages)
        before = held()
        for _ in range(20):
            once(pages)
        assert held() == before


@pytest.mark.parametrize(
    ("step", "status"),
    [
        ({"do": "add"}, 0),
        ({"do": "add", "offset": wire.PAGE_BYTES}, 10),  # IBV_WC_REM_ACCESS_ERR
        ({"do": "add", "of": "other"}, 10),
        ({"do": "read"}, 10),
        ({"do": "write"}, 10),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_only_adding_to_ones_own_page(
    verbs_ends: tuple[End, End], python: str, step: dict[str, Any], status: int
) -> None:
    """A worker that keeps to no rule, made of pyverbs: what it has a key for is all it reaches."""
    apart(stranger, verbs_ends, python, step, status)


def stranger(client: End, server: End, python: str, step: dict[str, Any], status: int) -> None:
    with listening(server) as pages:
        mine, other = pages.page(1), pages.page(1)
        order = {
            "source": client.address,
            "host": server.address,
            "port": pages.port,
            "secrets": [mine.secret.hex(), other.secret.hex()],
            "step": step,
        }
        script = Path(__file__).with_name("pyverbs_teller.py")
        done = subprocess.run(
            [python, "-I", script, json.dumps(order)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {"status": status}, done.stdout
        added = [struct.unpack_from("<Q", page.read())[0] for page in (mine, other)]
        assert added == [0 if status else 5, 0]
