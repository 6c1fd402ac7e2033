"""The GPUs of this machine, by their device nodes: no library is loaded, no device opened.

    nvidia   /dev/nvidia0, with nvidiactl, nvidia-uvm and nvidia-uvm-tools, which all share
    amd      /dev/dri/renderD128, as the kernel's KFD lists it, with /dev/kfd
    device   any other character device that the configuration names

A GPU that is split (MIG) is left out: who has its node has none of its parts without the
nodes of /dev/nvidia-caps, which are not handed out yet.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from typing import NamedTuple

from rfaas.errors import ConfigError, near
from rfaas.proto.worker_messages import Gpu

_NVIDIA = re.compile(r"nvidia(\d+)")
_NVIDIA_SHARED = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")
_KFD = "/sys/class/kfd/kfd/topology/nodes"


class Found(NamedTuple):
    """What there is, and what of it cannot be lent, in words."""

    gpus: list[Gpu]
    left_out: list[str]


def find(root: str = "") -> Found:
    """The GPUs of the machine whose root directory that is."""
    left_out: list[str] = []
    gpus = [*_nvidia(root, left_out), *_amd(root)]
    return Found(gpus, left_out)


def chosen(wanted: str, found: Found) -> list[Gpu]:
    """Those that `executor.gpus` names.

    Raises:
        ConfigError: there is no such one, or it is named twice.
    """
    if wanted in ("auto", "none"):
        return found.gpus if wanted == "auto" else []
    gpus: dict[str, Gpu] = {}
    for word in wanted.split():
        gpu = next((one for one in found.gpus if word in _names(one)), None)
        if gpu is None and word.startswith("/"):
            gpu = _device(word)
        if gpu is None:
            names = [one.name for one in found.gpus]
            raise ConfigError(
                f"executor.gpus: no GPU of this node is called {word!r}",
                hint=near(word, names)
                or (f"there is {', '.join(names)}" if names else "this node shows none"),
            )
        if gpu.name in gpus:
            raise ConfigError(f"executor.gpus: {word} is named twice")
        gpus[gpu.name] = gpu
    return list(gpus.values())


def closed_nodes(gpu: Gpu) -> list[str]:
    """Which of its nodes a worker in a sandbox cannot open: as nobody, of root's executor."""
    if os.geteuid():
        return [node for node in gpu.nodes if not os.access(node, os.R_OK | os.W_OK)]
    return [node for node in gpu.nodes if os.stat(node).st_mode & 0o006 != 0o006]


def _nvidia(root: str, left_out: list[str]) -> Iterator[Gpu]:
    try:
        names = os.listdir(f"{root}/dev")
    except OSError:
        return
    minors = sorted(int(match[1]) for name in names if (match := _NVIDIA.fullmatch(name)))
    uuids = _uuids(f"{root}/proc/driver/nvidia/gpus")
    shared = [f"{root}/dev/{name}" for name in _NVIDIA_SHARED]
    for minor in minors:
        own = f"{root}/dev/nvidia{minor}"
        if not _is_device(own):
            continue
        if _is_split(f"{root}/proc/driver/nvidia/capabilities/gpu{minor}/mig"):
            left_out.append(f"nvidia{minor} is split (MIG), which is not lent yet")
            continue
        yield Gpu(
            name=f"nvidia{minor}",
            kind="nvidia",
            visible=uuids.get(minor, str(minor)),
            nodes=(own, *filter(_is_device, shared)),
        )


def _uuids(folder: str) -> dict[int, str]:
    """By minor number, from the driver's own words: "GPU UUID:", "Device Minor:"."""
    found = {}
    for file in _listed(folder):
        facts = {}
        for line in _read(f"{folder}/{file}/information").splitlines():
            key, _, value = line.partition(":")
            facts[key.strip()] = value.strip()
        minor, uuid = facts.get("Device Minor", ""), facts.get("GPU UUID", "")
        if minor.isdecimal() and uuid.startswith("GPU-") and "?" not in uuid:
            found[int(minor)] = uuid
    return found


def _is_split(folder: str) -> bool:
    return any(name.startswith("gi") for name in _listed(folder))


def _amd(root: str) -> Iterator[Gpu]:
    kfd = f"{root}/dev/kfd"
    if not _is_device(kfd):
        return
    index = 0
    nodes = [name for name in _listed(f"{root}{_KFD}") if name.isdecimal()]
    for number in sorted(map(int, nodes)):
        text = _read(f"{root}{_KFD}/{number}/properties")
        facts = dict(line.split()[:2] for line in text.splitlines() if len(line.split()) > 1)
        minor = facts.get("drm_render_minor", "0")
        if not minor.isdecimal() or minor == "0":
            continue  # a processor
        own = f"{root}/dev/dri/renderD{minor}"
        unique = facts.get("unique_id", "0")
        visible = f"GPU-{int(unique):016x}" if unique.isdecimal() and int(unique) else str(index)
        index += 1  # as ROCm counts them, whether we may see them or not
        if _is_device(own):
            yield Gpu(name=f"renderD{minor}", kind="amd", visible=visible, nodes=(own, kfd))


def _device(path: str) -> Gpu:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise ConfigError(f"executor.gpus: {path}: {error.strerror}") from None
    if not stat.S_ISCHR(mode):
        raise ConfigError(f"executor.gpus: {path} is no character device")
    return Gpu(name=path, kind="device", visible=path, nodes=(path,))


def _names(gpu: Gpu) -> tuple[str, ...]:
    # An index as a name would say another GPU to each tool that counts.
    return (gpu.name, gpu.nodes[0], *([gpu.visible] if gpu.visible.startswith("GPU-") else []))


def _is_device(path: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except OSError:
        return False


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""
