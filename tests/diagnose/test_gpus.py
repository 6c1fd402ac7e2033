"""Finding GPUs, in trees that look like /dev, /proc and /sys of machines that have some."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from rfaas.diagnose import checks
from rfaas.diagnose.gpus import Found, chosen, find
from rfaas.errors import ConfigError
from rfaas.proto.worker_messages import Gpu
from rfaas.sandbox.gpus import environment
from tests.diagnose.machines import NODE, WANTS
from tests.harness.gpus import make_device

UUIDS = (
    "GPU-11111111-2222-3333-4444-555555555555",
    "GPU-66666666-7777-8888-9999-000000000000",
)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def nvidia(tmp_path: Path) -> Path:
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        make_device(tmp_path / "dev" / name)
    (tmp_path / "dev/nvidia-caps").mkdir()
    (tmp_path / "dev/nvidia7").write_text("no device")
    for minor, uuid in enumerate(UUIDS):
        text = f"Model: \t\t H100\nGPU UUID: \t {uuid}\nDevice Minor: \t {minor}\n"
        write(tmp_path / f"proc/driver/nvidia/gpus/0000:0{9 - minor}:00.0/information", text)
    return tmp_path


def test_nvidia(nvidia: Path) -> None:
    found = find(str(nvidia))
    assert found.left_out == []
    assert [(one.name, one.kind, one.visible) for one in found.gpus] == [
        ("nvidia0", "nvidia", UUIDS[0]),
        ("nvidia1", "nvidia", UUIDS[1]),
    ]
    assert found.gpus[1].nodes == tuple(
        f"{nvidia}/dev/{name}" for name in ("nvidia1", "nvidiactl", "nvidia-uvm")
    )


def test_one_that_is_split_is_left_out(nvidia: Path) -> None:
    write(nvidia / "proc/driver/nvidia/capabilities/gpu0/mig/gi1/access", "")
    write(nvidia / "proc/driver/nvidia/capabilities/gpu1/mig/config", "")
    found = find(str(nvidia))
    assert [one.name for one in found.gpus] == ["nvidia1"]
    assert found.left_out == ["nvidia0 is split (MIG), which is not lent yet"]


def test_amd(tmp_path: Path) -> None:
    (tmp_path / "dev/dri").mkdir(parents=True)
    for name in ("kfd", "dri/renderD128", "dri/renderD129", "dri/renderD130"):
        make_device(tmp_path / "dev" / name)
    topology = tmp_path / "sys/class/kfd/kfd/topology/nodes"
    for number, minor, unique in ((0, 0, 0), (2, 129, 0), (10, 128, 0xDEADBEEF)):
        text = f"simd_count 4\nunique_id {unique}\ndrm_render_minor {minor}\n"
        write(topology / f"{number}/properties", text)
    found = find(str(tmp_path)).gpus
    assert [(one.name, one.visible) for one in found] == [
        ("renderD129", "0"),
        ("renderD128", "GPU-00000000deadbeef"),
    ]
    assert found[0].nodes == (f"{tmp_path}/dev/dri/renderD129", f"{tmp_path}/dev/kfd")


def test_a_machine_without(tmp_path: Path) -> None:
    assert find(str(tmp_path)) == Found([], [])


def test_chosen(nvidia: Path, tmp_path: Path) -> None:
    found = find(str(nvidia))
    assert chosen("auto", found) == found.gpus
    assert chosen("none", found) == []
    assert chosen(f"{UUIDS[1]} nvidia0", found) == found.gpus[::-1]
    assert chosen(f"{nvidia}/dev/nvidia1", found) == found.gpus[1:]
    (other,) = chosen("/dev/null", found)
    assert (other.name, other.kind, other.nodes) == ("/dev/null", "device", ("/dev/null",))


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("nvidia2", "no GPU of this node is called 'nvidia2'"),
        ("nvidia0 nvidia0", "nvidia0 is named twice"),
        ("/etc/passwd", "/etc/passwd is no character device"),
        ("/dev/no-such", "/dev/no-such: No such file or directory"),
    ],
)
def test_chosen_wrongly(nvidia: Path, wanted: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"executor.gpus: {says}"):
        chosen(wanted, find(str(nvidia)))


def gpu(kind: str, number: int, visible: str = "") -> Gpu:
    return Gpu(
        name=f"{kind}{number}", kind=kind, visible=visible or str(number), nodes=(f"/dev/{number}",)
    )


@pytest.mark.parametrize(
    ("given", "alone", "cuda", "rocr", "hip"),
    [
        ([], True, "", "-1", "-1"),
        ([gpu("nvidia", 3), gpu("nvidia", 1)], False, "3,1", "-1", "-1"),
        ([gpu("nvidia", 3), gpu("nvidia", 1)], True, "0,1", "-1", "-1"),
        ([gpu("nvidia", 3, UUIDS[0])], True, UUIDS[0], "-1", "-1"),
        ([gpu("amd", 2), gpu("amd", 5)], False, "0,1", "2,5", "0,1"),
        ([gpu("amd", 2, "GPU-00000000deadbeef")], True, "0", "GPU-00000000deadbeef", "0"),
        ([gpu("nvidia", 1), gpu("amd", 2)], False, "1", "2", "0"),
        ([gpu("device", 1)], True, "", "-1", "-1"),
    ],
)
def test_variables(given: list[Gpu], alone: bool, cuda: str, rocr: str, hip: str) -> None:
    found = environment(given, alone=alone)
    names = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
    assert [found[name] for name in names] == [cuda, rocr, hip]
    assert found["RFAAS_GPUS"] == ",".join(one.nodes[0] for one in given)


def test_the_doctor() -> None:
    (none,) = checks.gpus(NODE, WANTS)
    assert none.text == "none to lend"
    facts = replace(NODE, gpus={"nvidia0": UUIDS[0]}, gpu_nodes_closed=["/dev/kfd"])
    has, closed = checks.gpus(facts, WANTS)
    assert has.text == f"nvidia0 ({UUIDS[0]})"
    assert "cannot open /dev/kfd" in closed.text
    assert closed.mend[0].startswith("chmod 0666 /dev/kfd")
