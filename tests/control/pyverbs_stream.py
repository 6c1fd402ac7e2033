"""A client of a control link over RDMA, made of pyverbs and of nothing of ours.

It speaks the wire as it is written down in rfaas/proto/link_wire.py, by itself, and
keeps to it or not, as it is told.  Run by a Python that has pyverbs:

    pyverbs_stream.py ORDER        JSON: source, host, port, frame (hex), steps

It says `frame` as rules ask, waits for an answer, and prints it as hex; then it
sends each step: {"kind", "credits", "bytes", "imm": whether there is one at all}.  At
last it prints the status of the first completion that is no success, 0 for none.
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

PATIENCE_S = 10.0
RECEIVES, RECEIVE_BYTES, SEND_BYTES = 16, 512, 8192  # others than ours: both sides may choose


def wait_event(channel, wanted):
    event = CMEvent(channel)
    kind, data = event.event_type, event.private_data
    event.ack_cm_event()
    if kind != wanted:
        raise SystemExit(f"event {kind}")
    return bytes(data or b"")


def main(order):  # noqa: C901, PLR0915 - a script, from top to bottom
    channel = CMEventChannel()
    cmid = CMID(creator=channel)
    there = AddrInfo(
        src=order["source"],
        dst=order["host"],
        dst_service=str(order["port"]),
        port_space=ce.RDMA_PS_TCP,
    )
    cmid.resolve_addr(there)
    wait_event(channel, ce.RDMA_CM_EVENT_ADDR_RESOLVED)
    cmid.resolve_route()
    wait_event(channel, ce.RDMA_CM_EVENT_ROUTE_RESOLVED)
    pd = PD(cmid.context)
    cq = CQ(cmid.context, 2 * RECEIVES)
    cap = QPCap(max_send_wr=RECEIVES, max_recv_wr=RECEIVES)
    qp = QP(pd, QPInitAttr(qp_type=e.IBV_QPT_RC, scq=cq, rcq=cq, cap=cap), QPAttr())

    def modify(state):
        attributes, mask = cmid.init_qp_attr(state)
        qp.modify(attributes, mask)

    memory = MR(pd, RECEIVES * RECEIVE_BYTES + SEND_BYTES, e.IBV_ACCESS_LOCAL_WRITE)
    modify(e.IBV_QPS_INIT)
    for index in range(RECEIVES):
        sge = SGE(memory.buf + index * RECEIVE_BYTES, RECEIVE_BYTES, memory.lkey)
        qp.post_recv(RecvWR(wr_id=index, num_sge=1, sg=[sge]))
    hello = struct.pack("<IHHI", 0x31434652, 1, RECEIVES, RECEIVE_BYTES)
    param = ConnParam(resources=0, depth=0, qp_num=qp.qp_num, data_len=len(hello))
    param.set_private_data(hello)
    cmid.connect(param)
    answer = wait_event(channel, ce.RDMA_CM_EVENT_CONNECT_RESPONSE)
    magic, version, receives, receive_bytes = struct.unpack_from("<IHHI", answer)
    assert (magic, version) == (0x31434652, 1), answer.hex()
    assert receives >= 2, receives
    assert receive_bytes >= 64, receive_bytes
    modify(e.IBV_QPS_RTR)
    modify(e.IBV_QPS_RTS)
    cmid.establish()

    def send(data, kind, credits_, with_imm=True):
        at = RECEIVES * RECEIVE_BYTES
        if data:
            memory.write(data, len(data), at)
        imm = kind << 16 | credits_
        # verbs have immediates in network order; pyverbs hands the number on as it is
        wr = SendWR(
            opcode=e.IBV_WR_SEND_WITH_IMM if with_imm else e.IBV_WR_SEND,
            num_sge=1,
            sg=[SGE(memory.buf + at, len(data), memory.lkey)],
            imm_data=int.from_bytes(imm.to_bytes(4, "big"), sys.byteorder),
            send_flags=e.IBV_SEND_SIGNALED,
        )
        qp.post_send(wr)

    def completion():
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if found := cq.poll()[1]:
                return found[0]
        raise SystemExit("no completion")

    frame = bytes.fromhex(order["frame"])
    assert len(frame) <= receive_bytes
    send(frame, 1, 0)
    said = b""
    while len(said) < 4 or len(said) < 4 + struct.unpack_from("<I", said)[0]:
        wc = completion()
        assert wc.status == e.IBV_WC_SUCCESS, wc.status
        if wc.opcode & e.IBV_WC_RECV and wc.byte_len:
            said += memory.read(wc.byte_len, wc.wr_id * RECEIVE_BYTES)
    print(said.hex(), flush=True)
    status = 0
    for step in order["steps"]:
        send(bytes(step["bytes"]), step["kind"], step["credits"], step.get("imm", True))
    for _ in order["steps"]:
        while True:
            wc = completion()
            if wc.status != e.IBV_WC_SUCCESS or wc.opcode & e.IBV_WC_RECV == 0:
                break
        status = status or int(wc.status)
    print(status, flush=True)
    sys.stdin.read()


main(json.loads(sys.argv[1]))
