"""What a resource manager tells of nodes, leases and itself."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence

import msgspec

import rfaas
from rfaas.proto import messages
from rfaas.proto.messages import FRAME_BYTES_MAX
from rfaas.roles.manager_state import State

ROLE = "resource-manager"
PAGE_MAX = 256  # reports in one page, if the frame has room for them
PAGE_BYTES_MAX = FRAME_BYTES_MAX - 1024  # leaves room for the frame's other fields


class Reports:
    """See the module's docstring."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._started_s = state.now_s()

    def nodes(self, asked: messages.ListNodes) -> messages.Nodes:
        state = self._state
        found = state.ledger.nodes(state.now_s(), after=asked.after, most=PAGE_MAX + 1)
        page = found[: fitting(found)]
        return messages.Nodes(nodes=tuple(page), more=len(page) < len(found))

    def leases(self, asked: messages.ListLeases) -> messages.Leases:
        state = self._state
        leases = state.ledger.leases(state.now_s(), asked.all, asked.after, PAGE_MAX + 1)
        found = list(map(state.told, leases))
        page = found[: fitting(found)]
        return messages.Leases(leases=tuple(page), more=len(page) < len(found))

    def status(self) -> messages.StatusReport:
        state = self._state
        now_s = state.now_s()
        nodes = state.ledger.nodes(now_s)
        up = [node for node in nodes if node.state != "lost"]
        return messages.StatusReport(
            role=ROLE,
            name=platform.node(),
            version=rfaas.__version__,
            pid=os.getpid(),
            uptime_s=now_s - self._started_s,
            address=state.address,
            facts={
                "nodes up": len(up),
                "nodes lost": len(nodes) - len(up),
                "cores": sum(node.cores for node in up),
                "cores free": sum(node.cores_free for node in up),
                "GPUs": sum(node.gpus for node in up),
                "GPUs free": sum(node.gpus_free for node in up),
                "leases live": sum(node.leases for node in nodes),
                "leases granted": state.granted,
                "requests waiting": state.ledger.waiting,
                "proofs refused": state.refused,
                "store": state.config.store,
                "store state": "fails" if state.keeper.fails else "saves",
            },
        )


def fitting(reports: Sequence[msgspec.Struct]) -> int:
    """How many of the reports fit into one page."""
    room = PAGE_BYTES_MAX
    for count, report in enumerate(reports[:PAGE_MAX]):
        room -= len(msgspec.msgpack.encode(report))
        if room < 0:
            return count
    return min(len(reports), PAGE_MAX)
