"""Recorded topologies: what the kernel says of some machines' processors."""

from __future__ import annotations

from rfaas.core.topology import UNKNOWN, Facts

# Four cores of two threads, numbered as most firmware does: 0 and 4 are siblings.
FAR = Facts({cpu: cpu % 4 for cpu in range(8)}, dict.fromkeys(range(8), 0))
# The same, as many virtual machines number them: 0 and 1 are siblings.
ADJACENT = Facts({cpu: cpu // 2 for cpu in range(8)}, dict.fromkeys(range(8), 0))
# Two sockets of four cores of two threads; 0 to 3 and 8 to 11 are on node 0, the NIC is on 1.
TWO_NODES = Facts(
    {cpu: cpu % 8 for cpu in range(16)}, {cpu: cpu % 8 // 4 for cpu in range(16)}, nic=1
)
# The same with the NIC on the other node.
NIC_ON_0 = TWO_NODES._replace(nic=0)
# Two sockets of four cores, numbered in turn, without a NIC.
IN_TURN = Facts({cpu: cpu for cpu in range(8)}, {cpu: cpu % 2 for cpu in range(8)})

ALL = {
    "far": (8, FAR),
    "adjacent": (8, ADJACENT),
    "two nodes": (16, TWO_NODES),
    "in turn": (8, IN_TURN),
    "four threads": (16, Facts({cpu: cpu // 4 for cpu in range(16)})),
    "half known": (8, Facts({0: 0, 4: 0, 1: 1, 5: 1}, {0: 0, 4: 0})),
    "unknown": (6, UNKNOWN),
    "one": (1, UNKNOWN),
}
