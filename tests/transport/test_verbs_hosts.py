"""A client of ours at workers that are not what they should be, in every phase of a connection.

The worker is pyverbs_host.py.  Whatever it does, the client says what, holds nothing
afterwards, and no call hangs.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rfaas.errors import ProtocolError, RfaasError, UnavailableError, WorkerCrashedError
from rfaas.proto import wire
from rfaas.proto.messages import Endpoint
from rfaas.transport import verbs
from tests.harness.rdma import End
from tests.transport.served import Calls
from tests.transport.verbs_tools import SLOT_BYTES, SLOTS

pytestmark = pytest.mark.rdma

Ends = tuple[End, End]
HOST = Path(__file__).with_name("pyverbs_host.py")
CONNECT_S = 1.0
WROTE = "the other side wrote past our window.*IBV_WC_REM_ACCESS_ERR"


class Worker:
    """The other side."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.process = process
        port = self.said()["port"]
        self.endpoint = Endpoint(host=address, port=port, secret=bytes(wire.SECRET_BYTES))

    def said(self) -> dict[str, Any]:
        """The next thing that it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr and self.process.stderr.read()
        return dict(json.loads(line))


@contextmanager
def worker(python: str, end: End, **order: Any) -> Iterator[Worker]:
    """One that answers as ordered."""
    plain = {"address": end.address, "slots": SLOTS, "slot_bytes": SLOT_BYTES, "answer": "accept"}
    words = [python, "-I", str(HOST), json.dumps(plain | order)]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Worker(process, end.address)
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("order", "kind", "said"),
    [
        ({"answer": "exit"}, UnavailableError, r"could not connect: .* \(RDMA_CM_EVENT_"),
        ({"answer": "silence"}, UnavailableError, r"could not connect: .* \(ETIMEDOUT\)"),
        ({"answer": "reject"}, UnavailableError, r"who listens there refused.*CM_EVENT_REJECTED"),
        ({"answer_bytes": 0}, ProtocolError, "worker's answer: it is not one of rFaaS"),
        ({"answer_bytes": 2}, ProtocolError, "worker's answer: it is not one of rFaaS"),
        ({"magic": 7}, ProtocolError, "worker's answer: it is not one of rFaaS"),
        ({"version": 2}, ProtocolError, "worker's answer: it speaks another version"),
        ({"lane": 1}, ProtocolError, "worker's answer: it is about another lane"),
        ({"answer_slots": SLOTS + 1}, ProtocolError, "its windows have another size"),
        ({"answer_slot_bytes": 8192}, ProtocolError, "its windows have another size"),
    ],
    ids=str,
)
def test_while_connecting(
    python: str,
    verbs_ends: Ends,
    monkeypatch: pytest.MonkeyPatch,
    order: dict[str, Any],
    kind: type[RfaasError],
    said: str,
) -> None:
    client, server = verbs_ends
    monkeypatch.setattr(verbs, "CONNECT_TIMEOUT_S", CONNECT_S)
    with worker(python, server, **order) as other:
        before = descriptors()
        with pytest.raises(kind, match=said):
            verbs.connect(other.endpoint, 0, SLOTS, SLOT_BYTES, client.address)
        assert descriptors() == before


@pytest.mark.parametrize("spin_us", [0, 60_000_000], ids=["asleep", "spinning"])
@pytest.mark.parametrize(
    ("order", "said"),
    [
        ({"then": "exit"}, r"its process ended \(RDMA_CM_EVENT_DISCONNECTED"),
        ({"then": "disconnect"}, r"the other side disconnected.*\(RDMA_CM_EVENT_DISCONNECTED"),
        ({"then": "queue pair error"}, r"does not answer.*IBV_WC_RETRY_EXC_ERR"),
        (
            {"then": "write", "write": {"rkey_xor": 0x55}},
            WROTE,
        ),
        (
            {"then": "write", "write": {"offset": -8}},
            WROTE,
        ),
        (
            {"then": "write", "write": {"slot": SLOTS - 1, "offset": SLOT_BYTES}},
            WROTE,
        ),
        ({"rkey_xor": 0x55, "requests": 0}, r"its key is wrong.*IBV_WC_REM_ACCESS_ERR"),
    ],
    ids=str,
)
def test_with_calls_in_flight(
    python: str, verbs_ends: Ends, order: dict[str, Any], said: str, spin_us: int
) -> None:
    """All of them fail, with the first cause that is known."""
    client, server = verbs_ends
    with worker(python, server, **{"requests": SLOTS} | order) as other:
        lane = verbs.connect(other.endpoint, 0, SLOTS, SLOT_BYTES, client.address)
        calls = Calls(spin_us=spin_us, timeout_s=0)
        calls._install([lane], ["echo"])
        lost = [calls.submit("echo", b"lost") for _ in range(SLOTS)]
        assert all(isinstance(future.exception(), WorkerCrashedError) for future in lost)
        error = verbs.explain(lane)
        assert error is not None
        assert re.search(said, error.text), error.text
        calls._install([], ())


def test_nonsense_in_mid_call(python: str, verbs_ends: Ends) -> None:
    """An answer that nobody asked for, over a connection that works."""
    client, server = verbs_ends
    with worker(python, server, requests=1, then="write", write={"imm_slot": SLOTS}) as other:
        lane = verbs.connect(other.endpoint, 0, SLOTS, SLOT_BYTES, client.address)
        calls = Calls(spin_us=0, timeout_s=0)
        calls._install([lane], ["echo"])
        with pytest.raises(ProtocolError, match="never asked for"):
            calls.call("echo", b"x")
        calls._install([], ())


def send() -> None:
    """A signal to the thread that connects."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGUSR1)


@contextmanager
def signals() -> Iterator[None]:
    """Signals come all the time."""
    over = threading.Event()

    def send_many() -> None:
        while not over.wait(0.005):
            send()

    thread = threading.Thread(target=send_many)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_signals_while_connecting(
    python: str, verbs_ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that a handler takes changes nothing; one whose handler raises ends it at once."""
    client, server = verbs_ends
    monkeypatch.setattr(verbs, "CONNECT_TIMEOUT_S", CONNECT_S)
    taken: list[int] = []

    def connect(other: Worker) -> None:
        verbs.connect(other.endpoint, 0, SLOTS, SLOT_BYTES, client.address)

    def interrupt(other: Worker) -> None:
        assert other.said() == {"silent": True}
        send()

    before = signal.signal(signal.SIGUSR1, lambda number, _: taken.append(number))
    try:
        timed_out = pytest.raises(UnavailableError, match="ETIMEDOUT")
        with worker(python, server, answer="silence") as other, signals(), timed_out:
            connect(other)
        signal.signal(signal.SIGUSR1, signal.default_int_handler)
        with worker(python, server, answer="silence") as other:
            thread = threading.Thread(target=interrupt, args=(other,))
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                connect(other)
            thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert taken


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
