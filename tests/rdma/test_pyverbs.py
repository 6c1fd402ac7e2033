"""pyverbs between two devices: the operations that invocations and accounting are made of.

What is seen here is what every test that speaks our wire by pyverbs may rely on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from rfaas.diagnose.devices import measure
from rfaas.diagnose.pyverbs_import import load_pyverbs
from tests.harness.processes import until
from tests.harness.rdma import End, lacking

pytestmark = pytest.mark.rdma

MEMORY_BYTES = 4096
IMMEDIATE = 0x01020304  # no palindrome: an error of byte order shows
PORT = 1


class Peer:
    """One end's queue pair with a page of memory that the other may write to."""

    def __init__(self, end: End, keep: ExitStack) -> None:
        from pyverbs import enums
        from pyverbs.cq import CQ
        from pyverbs.device import Context
        from pyverbs.mr import MR
        from pyverbs.pd import PD
        from pyverbs.qp import QP, QPCap, QPInitAttr

        self.end = end
        self.context = keep.enter_context(Context(name=end.device))
        self.pd = keep.enter_context(PD(self.context))
        self.cq = keep.enter_context(CQ(self.context, 16))
        access = (
            enums.IBV_ACCESS_LOCAL_WRITE
            | enums.IBV_ACCESS_REMOTE_WRITE
            | enums.IBV_ACCESS_REMOTE_READ
            | enums.IBV_ACCESS_REMOTE_ATOMIC
        )
        self.mr: Any = keep.enter_context(MR(self.pd, MEMORY_BYTES, access))
        cap = QPCap(max_send_wr=4, max_recv_wr=4, max_inline_data=64)
        wanted = QPInitAttr(qp_type=enums.IBV_QPT_RC, scq=self.cq, rcq=self.cq, cap=cap)
        self.qp: Any = keep.enter_context(QP(self.pd, wanted))
        self.gid = self.context.query_gid(PORT, end.gid_index)

    def connect(self, other: Peer) -> None:
        """To RTS, as ibv_modify_qp(3) has it."""
        from pyverbs import enums
        from pyverbs.addr import AHAttr, GlobalRoute
        from pyverbs.qp import QPAttr

        route = GlobalRoute(dgid=other.gid, sgid_index=self.end.gid_index)
        lid = other.context.query_port(PORT).lid
        attributes = QPAttr(port_num=PORT)
        attributes.qp_access_flags = (
            enums.IBV_ACCESS_REMOTE_WRITE
            | enums.IBV_ACCESS_REMOTE_READ
            | enums.IBV_ACCESS_REMOTE_ATOMIC
        )
        attributes.ah_attr = AHAttr(gr=route, is_global=1, port_num=PORT, dlid=lid)
        attributes.dest_qp_num = other.qp.qp_num
        attributes.path_mtu = enums.IBV_MTU_1024
        attributes.max_rd_atomic = attributes.max_dest_rd_atomic = 1
        attributes.min_rnr_timer, attributes.timeout = 12, 14
        attributes.retry_cnt = attributes.rnr_retry = 7
        self.qp.to_rts(attributes)

    def post(self, request: Any) -> None:
        self.qp.post_send(request, None)

    def expect(self) -> None:
        """Room for one immediate; pyverbs 44 wants a buffer, which may be of nothing."""
        from pyverbs.wr import SGE, RecvWR

        entry = SGE(self.mr.buf, 0, self.mr.lkey)
        self.qp.post_recv(RecvWR(num_sge=1, sg=[entry]), None)

    def completion(self) -> Any:
        """The next one, which is to be good."""
        found = until(lambda: self.cq.poll(1)[1], "a completion")
        assert found[0].status == 0, found[0]
        return found[0]


@pytest.fixture
def peers(rdma_ends: tuple[End, End], pytestconfig: pytest.Config) -> Iterator[tuple[Peer, Peer]]:
    try:
        load_pyverbs()
    except ImportError as error:
        lacking(pytestconfig, str(error))
    with ExitStack() as keep:
        first, second = (Peer(end, keep) for end in rdma_ends)
        first.connect(second)
        second.connect(first)
        yield first, second


def write_request(peer: Peer, to: Peer, size: int, flags: int, offset: int = 0) -> Any:
    from pyverbs import enums
    from pyverbs.wr import SGE, SendWR

    entry = SGE(peer.mr.buf, size, peer.mr.lkey)
    request = SendWR(
        num_sge=1,
        sg=[entry],
        opcode=enums.IBV_WR_RDMA_WRITE_WITH_IMM,
        send_flags=flags | enums.IBV_SEND_SIGNALED,
        imm_data=IMMEDIATE,
    )
    request.set_wr_rdma(to.mr.rkey, to.mr.buf + offset)
    return request


@pytest.mark.parametrize("is_inline", [False, True], ids=["from-memory", "inline"])
def test_write_with_immediate(peers: tuple[Peer, Peer], is_inline: bool) -> None:
    from pyverbs import enums

    first, second = peers
    second.expect()
    first.mr.write(b"as from host to host", 20)
    flags = enums.IBV_SEND_INLINE if is_inline else 0
    first.post(write_request(first, second, 20, flags, offset=64))
    arrived = second.completion()
    assert arrived.opcode == enums.IBV_WC_RECV_RDMA_WITH_IMM
    assert arrived.byte_len == 20
    assert arrived.imm_data in (IMMEDIATE, int.from_bytes(IMMEDIATE.to_bytes(4, "big"), "little"))
    assert second.mr.read(20, 64) == b"as from host to host"
    first.completion()


def test_write_of_nothing(peers: tuple[Peer, Peer]) -> None:
    """A call without input is an immediate alone."""

    first, second = peers
    second.expect()
    first.post(write_request(first, second, 0, 0))
    assert second.completion().byte_len == 0
    first.completion()


def test_fetch_and_add(peers: tuple[Peer, Peer], pytestconfig: pytest.Config) -> None:
    from pyverbs import enums
    from pyverbs.wr import SGE, SendWR

    first, second = peers
    if measure(second.end.device).atomics == "none":
        lacking(pytestconfig, f"{second.end.device} has no atomics")
    second.mr.write((40).to_bytes(8, "little"), 8)
    for expected in (40, 42):
        request = SendWR(
            num_sge=1,
            sg=[SGE(first.mr.buf, 8, first.mr.lkey)],
            opcode=enums.IBV_WR_ATOMIC_FETCH_AND_ADD,
            send_flags=enums.IBV_SEND_SIGNALED,
        )
        request.set_wr_atomic(second.mr.rkey, second.mr.buf, 2, 0)
        first.post(request)
        first.completion()
        assert int.from_bytes(first.mr.read(8, 0), "little") == expected
    assert int.from_bytes(second.mr.read(8, 0), "little") == 44


def test_wrong_key_ends_the_connection_only(peers: tuple[Peer, Peer]) -> None:
    from pyverbs import enums

    first, second = peers
    second.expect()  # else it would be asked to come again later, before its key is looked at
    request = write_request(first, second, 8, 0)
    request.set_wr_rdma(second.mr.rkey ^ 0x5A5A00, second.mr.buf)
    first.post(request)
    found = until(lambda: first.cq.poll(1)[1], "a completion")
    assert found[0].status == enums.IBV_WC_REM_ACCESS_ERR
    assert second.mr.read(8, 0) == bytes(8)


def test_inline_is_what_was_measured(rdma_ends: tuple[End, End]) -> None:
    for end in rdma_ends:
        limits = measure(end.device)
        assert limits.inline_bytes_granted >= limits.inline_bytes_max >= 16
        assert limits.qp_max > 0
