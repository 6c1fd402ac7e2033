"""A worker over RDMA made of pyverbs and of nothing of ours: it does to its client as it is told.

Run by a Python that has pyverbs:

    pyverbs_host.py ORDER          JSON, see `main`; says its port, then a line for each event
"""

# mypy: ignore-errors
# A script for another Python, without types to be had from its packages.

import json
import os
import struct
import sys
import time

import pyverbs.cm_enums as ce
import pyverbs.enums as e
from pyverbs.cmid import CMID, AddrInfo, CMEvent, CMEventChannel, ConnParam
from pyverbs.cq import CQ
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.pyverbs_error import PyverbsRDMAError
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, RecvWR, SendWR

GUARD_BYTES = 4096
PORTS = range(20000, 30000)
PATIENCE_S = 30.0


def say(**what):
    print(json.dumps(what), flush=True)


def wait_event(channel, wanted):
    """The next event, which is to be that one."""
    event = CMEvent(channel)
    if event.event_type != wanted:
        raise SystemExit(f"event {event.event_type}")
    return event


def listen(address):
    """(channel, listener): at a port that is free."""
    channel = CMEventChannel()
    for port in PORTS:
        listener = CMID(creator=channel)
        where = AddrInfo(
            src=address, src_service=str(port), port_space=ce.RDMA_PS_TCP, flags=ce.RAI_PASSIVE
        )
        try:
            listener.bind_addr(where)
        except PyverbsRDMAError:
            listener.close()
            continue
        listener.listen(1)
        say(port=port)
        return channel, listener
    raise SystemExit("no port is free")


class Host:
    """One connection from a client."""

    def __init__(self, order, channel, listener):
        slots, slot_bytes = order["slots"], order["slot_bytes"]
        self.stride = slot_bytes + GUARD_BYTES
        event = wait_event(channel, ce.RDMA_CM_EVENT_CONNECT_REQUEST)
        self.fields = struct.unpack_from("<IHHQIII", bytes(event.private_data))
        self.cmid = CMID(creator=event, listen_id=listener)
        event.ack_cm_event()
        if order["answer"] == "exit":
            os._exit(0)
        if order["answer"] == "silence":
            say(silent=True)
            time.sleep(PATIENCE_S)
        if order["answer"] == "reject":
            self.cmid.reject()
            time.sleep(PATIENCE_S)
        self.pd = PD(self.cmid.context)
        self.cq = CQ(self.cmid.context, 8 * slots)
        cap = QPCap(max_send_wr=2 * slots, max_recv_wr=4 * slots)
        init = QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self.cq, rcq=self.cq, cap=cap)
        self.qp = QP(self.pd, init, QPAttr())
        both = e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_WRITE
        self.inputs = MR(self.pd, slots * self.stride, both)
        for state in (e.IBV_QPS_INIT, e.IBV_QPS_RTR, e.IBV_QPS_RTS):
            attributes, mask = self.cmid.init_qp_attr(state)
            if state == e.IBV_QPS_INIT:
                attributes.qp_access_flags = e.IBV_ACCESS_REMOTE_WRITE
                self.qp.modify(attributes, mask)
                for _ in range(2 * slots):
                    sge = SGE(self.inputs.buf, 4, self.inputs.lkey)
                    self.qp.post_recv(RecvWR(num_sge=1, sg=[sge]))
            else:
                self.qp.modify(attributes, mask)
        window = struct.pack(
            "<IHHQIII",
            order.get("magic", 0x31564652),
            order.get("version", 1),
            order.get("lane", 0),
            self.inputs.buf,
            self.inputs.rkey ^ order.get("rkey_xor", 0),
            order.get("answer_slots", slots),
            order.get("answer_slot_bytes", slot_bytes),
        )[: order.get("answer_bytes", 28)]
        param = ConnParam(resources=0, depth=0, qp_num=self.qp.qp_num, data_len=len(window))
        if window:
            param.set_private_data(window)
        self.cmid.accept(param)
        if order["answer"] == "accept, exit":
            os._exit(0)

    def requests(self, wanted):
        """Return when so many requests have come."""
        found, deadline = 0, time.monotonic() + PATIENCE_S
        while found < wanted and time.monotonic() < deadline:
            found += self.cq.poll()[0]

    def write(self, slot=0, size=8, rkey_xor=0, offset=0, imm_slot=None):
        """An answer, right or wrong."""
        address, rkey = self.fields[3], self.fields[4]
        sge = SGE(self.inputs.buf, size, self.inputs.lkey)
        imm = (slot if imm_slot is None else imm_slot) << 16
        wr = SendWR(
            opcode=e.IBV_WR_RDMA_WRITE_WITH_IMM,
            num_sge=1,
            sg=[sge],
            imm_data=int.from_bytes(imm.to_bytes(4, "big"), sys.byteorder),
            send_flags=e.IBV_SEND_SIGNALED,
        )
        wr.set_wr_rdma(rkey ^ rkey_xor, address + slot * self.stride + offset)
        self.qp.post_send(wr)


def main(order):
    """Listen at `address`; then `answer` a client, and after so many `requests` do `then`."""
    channel, listener = listen(order["address"])
    host = Host(order, channel, listener)
    wait_event(channel, ce.RDMA_CM_EVENT_ESTABLISHED).ack_cm_event()
    host.requests(order.get("requests", 0))
    then = order.get("then", "")
    if then == "exit":
        os._exit(0)
    if then == "disconnect":
        host.cmid.disconnect()
    if then == "queue pair error":
        host.qp.modify(QPAttr(qp_state=e.IBV_QPS_ERR), e.IBV_QP_STATE)
    if then == "write":
        host.write(**order["write"])
    say(done=True)
    time.sleep(PATIENCE_S)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
