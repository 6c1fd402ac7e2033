"""Which GPUs a worker sees: the variables that their libraries read.

They hold nobody who does not ask them: at levels `none` and `process` nothing else does.
The levels above show a worker the device nodes of its own GPUs and no others.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rfaas.proto.worker_messages import Gpu

NOBODY_VISIBLE = "-1"  # of ROCm, to which "" is no list at all


def environment(gpus: Sequence[Gpu], *, alone: bool) -> dict[str, str]:
    """The variables for a worker that has these GPUs and no others.

    Args:
        alone: it sees no other GPU's device, so that an index counts its own.
    """
    nvidia = [gpu for gpu in gpus if gpu.kind == "nvidia"]
    amd = [gpu for gpu in gpus if gpu.kind == "amd"]
    own = ",".join(map(str, range(len(amd))))  # HIP counts what ROCR_VISIBLE_DEVICES leaves
    values = {
        # HIP reads it as well as its own.
        "CUDA_VISIBLE_DEVICES": own if amd and not nvidia else _list(nvidia, alone=alone),
        "ROCR_VISIBLE_DEVICES": _list(amd, alone=alone) or NOBODY_VISIBLE,
        "HIP_VISIBLE_DEVICES": own or NOBODY_VISIBLE,
        "RFAAS_GPUS": ",".join(gpu.nodes[0] for gpu in gpus),
    }
    if nvidia:
        values["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the order of an index, where it is one
    return values


def nodes_of(gpus: Sequence[Gpu]) -> list[str]:
    """The device nodes of GPUs, each once."""
    return list(dict.fromkeys(node for gpu in gpus for node in gpu.nodes))


def see(gpus: Sequence[Gpu], *, alone: bool) -> None:
    """Have this process, and what it loads, see these GPUs and no others."""
    os.environ.update(environment(gpus, alone=alone))


def _list(gpus: Sequence[Gpu], *, alone: bool) -> str:
    """By name where all have one, since the two must not be mixed."""
    if all(gpu.visible.startswith("GPU-") for gpu in gpus):
        return ",".join(gpu.visible for gpu in gpus)
    if alone:
        return ",".join(map(str, range(len(gpus))))
    return ",".join(gpu.visible for gpu in gpus if not gpu.visible.startswith("GPU-"))
