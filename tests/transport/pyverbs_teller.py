"""Who has an accounting page's key, and does with it what it likes: made of pyverbs alone.

pyverbs_teller.py ORDER        JSON, see `main`; the status of its one operation comes back
"""

# mypy: ignore-errors
# A script for another Python, without types to be had from its packages.

import json
import struct
import sys
import time

import pyverbs.cm_enums as ce
import pyverbs.enums as e
from pyverbs.cmid import CMID, AddrInfo, CMEvent, CMEventChannel, ConnParam
from pyverbs.cq import CQ
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, SendWR

PATIENCE_S = 10.0
OPCODES = {
    "add": e.IBV_WR_ATOMIC_FETCH_AND_ADD,
    "read": e.IBV_WR_RDMA_READ,
    "write": e.IBV_WR_RDMA_WRITE,
}


def wait_event(channel, wanted):
    """The private data of the next event, which is to be that one."""
    event = CMEvent(channel)
    kind, data = event.event_type, event.private_data
    event.ack_cm_event()
    assert kind == wanted, f"event {kind}"
    return bytes(data or b"")


class Teller:
    """One connection to the page of a secret."""

    def __init__(self, order, secret):
        self.channel = CMEventChannel()
        self.cmid = CMID(creator=self.channel)
        there = AddrInfo(
            src=order["source"],
            dst=order["host"],
            dst_service=str(order["port"]),
            port_space=ce.RDMA_PS_TCP,
        )
        self.cmid.resolve_addr(there)
        wait_event(self.channel, ce.RDMA_CM_EVENT_ADDR_RESOLVED)
        self.cmid.resolve_route()
        wait_event(self.channel, ce.RDMA_CM_EVENT_ROUTE_RESOLVED)
        self.pd = PD(self.cmid.context)
        self.cq = CQ(self.cmid.context, 4)
        cap = QPCap(max_send_wr=4, max_recv_wr=1)
        init = QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self.cq, rcq=self.cq, cap=cap)
        self.qp = QP(self.pd, init, QPAttr())
        self.landing = MR(self.pd, 4096, e.IBV_ACCESS_LOCAL_WRITE)
        hello = struct.pack("<IHH", 0x31414652, 1, 0) + bytes.fromhex(secret)
        self.modify(e.IBV_QPS_INIT)
        param = ConnParam(resources=0, depth=1, qp_num=self.qp.qp_num, data_len=len(hello))
        param.set_private_data(hello)
        self.cmid.connect(param)
        answer = wait_event(self.channel, ce.RDMA_CM_EVENT_CONNECT_RESPONSE)
        _, _, _, self.address, self.rkey = struct.unpack_from("<IHHQI", answer)
        self.modify(e.IBV_QPS_RTR)
        self.modify(e.IBV_QPS_RTS)
        self.cmid.establish()

    def modify(self, state):
        attributes, mask = self.cmid.init_qp_attr(state)
        self.qp.modify(attributes, mask)

    def do(self, step, address, rkey):
        """The status of the operation."""
        sge = SGE(self.landing.buf, 8, self.landing.lkey)
        opcode = OPCODES[step["do"]]
        wr = SendWR(opcode=opcode, num_sge=1, sg=[sge], send_flags=e.IBV_SEND_SIGNALED)
        at = address + step.get("offset", 0)
        if step["do"] == "add":
            wr.set_wr_atomic(rkey, at, 5)
        else:
            wr.set_wr_rdma(rkey, at)
        self.qp.post_send(wr)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if done := self.cq.poll()[1]:
                return int(done[0].status)
        raise TimeoutError("no completion")


def main(order):
    """Connect to the page of each of the `secrets`; do `step` over the first connection."""
    mine, *others = [Teller(order, secret) for secret in order["secrets"]]
    target = others[0] if order["step"].get("of") == "other" else mine
    status = mine.do(order["step"], target.address, target.rkey)
    print(json.dumps({"status": status}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
