"""A client of a worker over RDMA, made of pyverbs and of nothing of ours.

It speaks the wire as it is written down in rfaas/proto/wire.py, by itself, and
keeps to it or not, as it is told.  Run by a Python that has pyverbs:

    pyverbs_peer.py ORDER          JSON, see `main`; one line of JSON comes back for each step
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
from pyverbs.wr import SGE, RecvWR, SendWR

GUARD_BYTES = 4096
PATIENCE_S = 10.0


class RefusedError(Exception):
    """The worker did not take the connection."""


def wait_event(channel, wanted):
    """The private data of the next event, which is to be that one."""
    event = CMEvent(channel)
    kind, data = event.event_type, event.private_data
    event.ack_cm_event()
    if kind == ce.RDMA_CM_EVENT_REJECTED:
        raise RefusedError(bytes(data or b"").hex())
    if kind != wanted:
        raise RefusedError(f"event {kind}")
    return bytes(data or b"")


class Peer:
    """One connection."""

    def __init__(self, order):
        slots, slot_bytes = order["slots"], order["slot_bytes"]
        self.stride = slot_bytes + GUARD_BYTES
        port = str(order["port"])
        self.channel = CMEventChannel()
        self.cmid = CMID(creator=self.channel)
        there = AddrInfo(
            src=order["source"], dst=order["host"], dst_service=port, port_space=ce.RDMA_PS_TCP
        )
        self.cmid.resolve_addr(there)
        wait_event(self.channel, ce.RDMA_CM_EVENT_ADDR_RESOLVED)
        self.cmid.resolve_route()
        wait_event(self.channel, ce.RDMA_CM_EVENT_ROUTE_RESOLVED)
        self.pd = PD(self.cmid.context)
        depth = order.get("depth", 2 * slots)
        self.cq = CQ(self.cmid.context, 2 * depth)
        cap = QPCap(max_send_wr=depth, max_recv_wr=depth)
        init = QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self.cq, rcq=self.cq, cap=cap)
        self.qp = QP(self.pd, init, QPAttr())
        both = e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_WRITE
        self.outputs = MR(self.pd, slots * self.stride, both)
        self.inputs = MR(self.pd, slots * self.stride, e.IBV_ACCESS_LOCAL_WRITE)
        self.slots = slots
        hello = struct.pack(
            "<IHHQIII",
            order.get("magic", 0x31564652),
            order.get("version", 1),
            order.get("lane", 0),
            self.outputs.buf,
            self.outputs.rkey,
            order.get("hello_slots", slots),
            slot_bytes,
        ) + bytes.fromhex(order["secret"])
        hello = hello[: order.get("hello_bytes", len(hello))]
        self.modify(e.IBV_QPS_INIT)
        for _ in range(depth if order.get("receives", True) else 0):
            self.receive()
        param = ConnParam(resources=0, depth=0, qp_num=self.qp.qp_num, data_len=len(hello))
        if hello:
            param.set_private_data(hello)
        self.cmid.connect(param)
        answer = wait_event(self.channel, ce.RDMA_CM_EVENT_CONNECT_RESPONSE)
        fields = struct.unpack_from("<IHHQIII", answer)
        self.told = fields
        self.address, self.rkey = fields[3], fields[4]
        self.modify(e.IBV_QPS_RTR)
        self.modify(e.IBV_QPS_RTS)
        self.cmid.establish()

    def modify(self, state):
        attributes, mask = self.cmid.init_qp_attr(state)
        if state == e.IBV_QPS_INIT:  # before it is connected, rdma_cm does not know yet
            attributes.qp_access_flags = e.IBV_ACCESS_REMOTE_WRITE
        self.qp.modify(attributes, mask)

    def receive(self):
        """Immediates take no memory, but pyverbs wants some in every receive."""
        self.qp.post_recv(RecvWR(num_sge=1, sg=[SGE(self.inputs.buf, 4, self.inputs.lkey)]))

    def write(self, step):
        """RDMA WRITE WITH IMM of `data` to where the step says, right or wrong."""
        data = bytes.fromhex(step.get("data", "")) or bytes(step.get("size", 0))
        slot = step.get("slot", 0)
        if data:
            self.inputs.write(data, len(data), 0)
        imm = step.get("flags", 0) << 28 | step.get("imm_slot", slot) << 16 | step.get("low", 0)
        sge = SGE(self.inputs.buf, len(data), self.inputs.lkey)
        opcode = e.IBV_WR_RDMA_WRITE_WITH_IMM
        wr = SendWR(
            opcode=opcode,
            num_sge=1,
            sg=[sge],
            # verbs have immediates in network order; pyverbs hands the number on as it is
            imm_data=int.from_bytes(imm.to_bytes(4, "big"), sys.byteorder),
            send_flags=e.IBV_SEND_SIGNALED,
        )
        address = self.address + slot * self.stride + step.get("offset", 0)
        wr.set_wr_rdma(self.rkey ^ step.get("rkey_xor", 0), address)
        self.qp.post_send(wr)

    def completions(self, wanted):
        """The first `wanted` completions of any kind."""
        found, deadline = [], time.monotonic() + PATIENCE_S
        while len(found) < wanted and time.monotonic() < deadline:
            found += self.cq.poll()[1] or []
        return found

    def describe(self, wc):
        """A completion, with the output it announces."""
        if wc.status != e.IBV_WC_SUCCESS:
            return {"status": int(wc.status)}
        if wc.opcode & e.IBV_WC_RECV == 0:
            return {"sent": True}
        imm = int.from_bytes(int(wc.imm_data).to_bytes(4, sys.byteorder), "big")
        slot = imm >> 16 & 0xFFF
        data = b""
        if wc.byte_len and slot < self.slots:
            data = self.outputs.read(wc.byte_len, slot * self.stride)
        self.receive()
        return {"slot": slot, "low": imm & 0xFFFF, "bytes": wc.byte_len, "data": data.hex()}


def main(order):
    """Connect as the order says, then do its `steps`: each a write and what comes of it."""
    try:
        peer = Peer(order)
    except RefusedError as refusal:
        print(json.dumps({"refused": str(refusal)}), flush=True)
        return
    print(json.dumps({"told": peer.told}), flush=True)
    for step in order["steps"]:
        for _ in range(step.get("times", 1)):
            peer.write(step)
        wanted = 0 if step.get("until_failed") else 2 * step.get("times", 1)
        wanted = step.get("completions", wanted)
        said = [peer.describe(wc) for wc in peer.completions(wanted)]
        said = [one for one in said if "sent" not in one]
        while step.get("until_failed") and not said:
            said = [one for one in map(peer.describe, peer.completions(1)) if "status" in one]
        if step.get("until_disconnected"):
            wait_event(peer.channel, ce.RDMA_CM_EVENT_DISCONNECTED)
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
