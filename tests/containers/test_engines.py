"""Engines that are not on this machine: the exact command lines, and all that surrounds them.

The lines are checked against the manuals that the engines' modules name.  A stand-in on PATH
records them and runs the worker that they would run, so the rest of the way is real.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import sys
from pathlib import Path

import pytest

from rfaas.errors import CapacityError, SystemCallError, UsageError, WorkerCrashedError
from rfaas.proto.worker_messages import Gpu, Limits
from rfaas.sandbox.container import last_word
from rfaas.sandbox.engines import Job, runc, table
from tests.containers.conftest import Node, name_of
from tests.functions.build import build_library
from tests.harness import images
from tests.harness.images import Layout
from tests.harness.processes import until
from tests.harness.rdma import End
from tests.harness.site import Site

DIGEST = "sha256:" + "0" * 64
IMAGE = f"registry.example:5000/group/name@{DIGEST}"
JOB = Job(
    name="rfaas-00ff",
    folder="/run/box",
    image=IMAGE,
    root="/srv/tree",
    program="/run/inside",
    limits=Limits(lanes=2, memory_bytes=1 << 30, processes=64),
    cpus=(3,),
    options={},
)
SRIOV = {
    "docker_rdma_sriov": "true",
    "docker_network": "mynet",
    "docker_address": "148.187.105.220",
    "docker_volume": "/users/rfaas/opt",
}
HELD = "--read-only --ipc=none --user=65534:65534 --cap-drop=ALL "
HELD += "--security-opt=no-new-privileges --init=false --env=NVIDIA_VISIBLE_DEVICES=void "
HELD += "--memory=1073741824 --pids-limit=68"
COMMANDS = {
    "docker": (
        "docker run --rm -i --net=none --name rfaas-00ff --pull=never --log-driver=none "
        f"--hostname=rfaas {HELD} --volume /run/inside:/rfaas/inside:ro "
        f"--volume /run/box/link:/rfaas/link:ro --entrypoint=/rfaas/inside {IMAGE} "
        "/rfaas/link/keeper"
    ),
    "apptainer": (
        "apptainer --silent exec --userns --containall --cleanenv --net --network none "
        "--no-privs --no-home --no-eval --hostname rfaas --pwd / "
        "--bind /run/inside:/rfaas/inside:ro --bind /run/box/link:/rfaas/link:ro "
        "/srv/tree /rfaas/inside /rfaas/link/keeper"
    ),
    "sarus": (
        "sarus run --name=rfaas-00ff --workdir=/ "
        "--mount=type=bind,source=/run/inside,destination=/rfaas/inside,readonly "
        "--mount=type=bind,source=/run/box/link,destination=/rfaas/link "
        f"--entrypoint=/rfaas/inside {IMAGE} /rfaas/link/keeper"
    ),
}
COMMANDS["singularity"] = COMMANDS["apptainer"].replace("apptainer", "singularity")


@pytest.mark.parametrize("engine", COMMANDS)
def test_command(engine: str) -> None:
    assert " ".join(table()[engine].command(JOB)) == COMMANDS[engine]


NVIDIA = Gpu(
    name="nvidia1",
    kind="nvidia",
    visible="GPU-11111111-2222-3333-4444-555555555555",
    nodes=("/dev/nvidia1", "/dev/nvidiactl"),
)
AMD = Gpu(name="renderD128", kind="amd", visible="0", nodes=("/dev/dri/renderD128", "/dev/kfd"))


def test_gpus_on_command_lines() -> None:
    """docker-run(1), podman-run(1): --device; apptainer-exec(1): --nv, --rocm, --bind."""
    job = JOB._replace(gpus=(NVIDIA, AMD))
    devices = (
        "--device=/dev/nvidia1 --device=/dev/nvidiactl --device=/dev/dri/renderD128 "
        "--device=/dev/kfd"
    )
    for name in ("docker", "podman"):
        line = " ".join(table()[name].command(job))
        assert f"NVIDIA_VISIBLE_DEVICES=void {devices} " in line
        assert "--device" not in " ".join(table()[name].command(JOB))
    assert " --nv --rocm --bind /run/inside" in " ".join(table()["apptainer"].command(job))
    other = Gpu(name="/dev/x", kind="device", visible="/dev/x", nodes=("/dev/x",))
    line = " ".join(table()["singularity"].command(JOB._replace(gpus=(other,))))
    assert " --pwd / --bind /dev/x --bind " in line


def test_gpus_in_bundles() -> None:
    null = Gpu(name="/dev/null", kind="device", visible="/dev/null", nodes=("/dev/null",))
    job = JOB._replace(gpus=(null,))
    linux = runc.config(job, "rfaas-00ff")["linux"]
    number = {"type": "c", "major": 1, "minor": 3}
    assert linux["resources"]["devices"][1:] == [{"allow": True, "access": "rw", **number}]
    (device,) = linux["devices"]
    assert {**device, **number, "path": "/dev/null", "fileMode": 0o666} == device
    bundle = runc.config(job, "")
    assert bundle["mounts"][-1]["source"] == bundle["mounts"][-1]["destination"] == "/dev/null"


def test_docker_with_sriov() -> None:
    """As the published system: docker_rdma_sriov run --rm -i --net= --ip= --volume V:/opt."""
    line = " ".join(table()["docker"].command(JOB._replace(options=SRIOV)))
    assert line.startswith(
        "docker_rdma_sriov run --rm -i --net=mynet --ulimit=memlock=-1:-1 --ip=148.187.105.220 "
        "--volume /users/rfaas/opt:/opt:ro --name rfaas-00ff "
    )
    assert line.endswith(COMMANDS["docker"].partition("--name rfaas-00ff ")[2])


def test_fetching_and_removing() -> None:
    options = {"registry_auth": "/etc/rfaas/config.json"}
    lines = {
        name: [
            *(" ".join(one) for one in engine.pull(IMAGE, options)),
            *(" ".join(one) for one in engine.remove("rfaas-00ff", "/run/box")),
        ]
        for name, engine in table().items()
    }
    assert lines["docker"] == [
        f"docker --config /etc/rfaas pull {IMAGE}",
        "docker rm --force rfaas-00ff",
    ]
    assert lines["sarus"] == [f"sarus pull {IMAGE}", "sarus kill rfaas-00ff"]
    assert lines["podman"][0].endswith(f" pull --authfile /etc/rfaas/config.json {IMAGE}")
    assert lines["podman"][1] == "podman rm --force --ignore --time 0 rfaas-00ff"
    assert lines["runc"] == lines["crun"] == lines["apptainer"] == lines["singularity"] == []


def test_bundle_of_root() -> None:
    bundle = runc.config(JOB, "rfaas-00ff")
    process, linux = bundle["process"], bundle["linux"]
    assert process["user"] == {"uid": 65534, "gid": 65534}
    assert process["noNewPrivileges"]
    assert set(map(len, process["capabilities"].values())) == {0}
    assert bundle["root"] == {"path": "/srv/tree", "readonly": True}
    kinds = {one["type"] for one in linux["namespaces"]}
    assert kinds == {"pid", "ipc", "uts", "mount", "network"}
    assert linux["resources"]["devices"] == [{"allow": False, "access": "rwm"}]
    assert all("ro" in one["options"] for one in bundle["mounts"] if one["type"] != "proc")


def test_bundle_of_a_user() -> None:
    linux = runc.config(JOB, "")["linux"]
    assert {"type": "user"} in linux["namespaces"]
    mapping = {"containerID": 0, "hostID": os.geteuid(), "size": 1}
    assert linux["uidMappings"] == [mapping]
    assert "cgroupsPath" not in linux


class Recorded(Node):
    """A node whose engine is a stand-in."""

    def __init__(self, site: Site, engine: str, program: str) -> None:
        super().__init__(site, engine)
        folder = site.path / "bin"
        folder.mkdir()
        for name in {engine, program}:
            file = folder / name
            source = Path(__file__).with_name("stand_in.py").read_text()
            file.write_text(f"#!{sys.executable} -I\n{source}")
            file.chmod(file.stat().st_mode | stat.S_IXUSR)
        self.log = site.path / "commands"
        self.log.touch()
        site.environ["STAND_IN_LOG"] = str(self.log)
        site.environ["STAND_IN_ARCHITECTURE"] = images.OURS
        site.environ["PATH"] = f"{folder}:{site.environ['PATH']}"
        site.set(executor__resource_manager="none", container__engine=engine)

    def commands(self) -> list[list[str]]:
        """What the engine was asked so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.mark.parametrize(
    ("engine", "program"),
    [
        ("docker", "docker"),
        ("docker", "docker_rdma_sriov"),
        ("apptainer", "apptainer"),
        ("singularity", "singularity"),
        ("sarus", "sarus"),
    ],
)
def test_worker(site: Site, hostile: Path, layout: Layout, engine: str, program: str) -> None:
    node = Recorded(site, engine, program)
    image = layout.reference if table()[engine].takes_trees else f"group/name@{DIGEST}"
    site.set(lease__image=image)
    if program == "docker_rdma_sriov":
        site.set(**{f"container__{key}": value for key, value in SRIOV.items()})
        site.set(container__docker_registry="10.0.0.1:5000")
    node.start()
    with node.session() as session, session.lease(library=hostile) as lease:
        assert lease.call("empty_output") == b""
        (ran,) = [one for one in node.commands() if "run" in one or "exec" in one]
        assert ran[0] == program
        if engine == "docker":
            assert image in ran
        with pytest.raises(WorkerCrashedError, match="SIGSEGV"):
            lease.call("crash_segv")
        assert lease.call("empty_output") == b""
        lease.submit("loop_forever")
    until(lambda: not node.processes() and not node.boxes(), "the end of all containers")


@pytest.mark.parametrize("is_open", [False, True])
def test_network(site: Site, libraries: Path, is_open: bool) -> None:
    """Of a container with a NIC of its own the function may use it; of no other one any."""
    attacks = build_library(libraries, "attacks")
    node = with_nic(site) if is_open else Recorded(site, "docker", "docker")
    site.set(lease__image=f"group/name@{DIGEST}")
    node.start()
    with node.session() as session, session.lease(library=attacks) as lease:
        lines = bytes(lease.call("connect_out", b"/nowhere")).decode().splitlines()
        found = dict(line.rsplit(": ", 1) for line in lines)
    sockets = ("tcp socket", "udp socket", "netlink socket")
    assert {found.pop(what) for what in sockets} == ({"done"} if is_open else {"EPERM"})
    if is_open:
        assert found.pop("connect") == "ECONNREFUSED"
        assert found.pop("bind") in ("done", "EACCES")
    assert found == {"packet socket": "EPERM", "unix socket": "EPERM"}


def test_no_network_at_another_level(site: Site, libraries: Path) -> None:
    """The key says what Docker's containers have, whatever else the node runs."""
    attacks = build_library(libraries, "attacks")
    node = with_nic(site)
    node.start()
    with node.session() as session, session.lease(library=attacks, isolation="sandbox") as lease:
        lines = bytes(lease.call("connect_out", b"/nowhere")).decode().splitlines()
        assert {line.rsplit(": ", 1)[1] for line in lines} == {"EPERM"}


@pytest.mark.rdma
def test_nic(site: Site, libraries: Path, rdma_ends: tuple[End, End]) -> None:
    """librdmacm and libibverbs work in there: netlink, ioctl and what else they need."""
    nic = build_library(libraries, "nic")
    node = with_nic(site)
    site.set(lease__image=f"group/name@{DIGEST}")
    node.start()
    with node.session() as session, session.lease(library=nic) as lease:
        assert bytes(lease.call("use_nic", rdma_ends[0].address.encode())) == b"works"
    site.set(container__docker_rdma_sriov="false")
    node.restart()
    with node.session() as session, session.lease(library=nic) as lease:
        assert bytes(lease.call("use_nic", rdma_ends[0].address.encode())) != b"works"


def with_nic(site: Site) -> Recorded:
    """A node whose containers have a NIC, as the stand-in understands it: that of the machine."""
    node = Recorded(site, "docker", "docker_rdma_sriov")
    site.set(**{f"container__{key}": value for key, value in SRIOV.items()})
    return node


def test_image_of_the_configured_registry(site: Site, hostile: Path) -> None:
    node = Recorded(site, "docker", "docker")
    site.set(lease__image=f"name@{DIGEST}", container__docker_registry="10.0.0.1:5000")
    node.start()
    with node.session() as session, session.lease(library=hostile):
        assert f"10.0.0.1:5000/name@{DIGEST}" in node.commands()[-1]


def test_layout_for_an_engine_with_a_store(site: Site, hostile: Path, layout: Layout) -> None:
    node = Recorded(site, "docker", "docker")
    site.set(lease__image=layout.reference)
    node.start()
    refused = pytest.raises(UsageError, match="docker runs no image from a layout")
    with node.session() as session, refused:
        session.lease(library=hostile)


def test_image_for_another_architecture(site: Site, hostile: Path) -> None:
    """Docker runs such an image by emulation, or fails inside; it is not asked to."""
    node = Recorded(site, "docker", "docker")
    site.environ["STAND_IN_ARCHITECTURE"] = images.OTHER
    site.set(lease__image=f"name@{DIGEST}")
    node.start()
    words = f"it is for {images.OTHER}, this node is {images.OURS}"
    with node.session() as session, pytest.raises(UsageError, match=words):
        session.lease(library=hostile)
    assert [line[:3] for line in node.commands()] == [["docker", "image", "inspect"]]


def test_killed_keeper_of_a_daemon(site: Site, hostile: Path) -> None:
    """Docker's containers are the daemon's: the next executor has it remove what is left."""
    node = Recorded(site, "docker", "docker")
    site.set(lease__image=f"name@{DIGEST}")
    executor = node.start()
    with node.session() as session:
        lease = session.lease(library=hostile)
        (name,) = [box.name for box in node.boxes()]
        keeper = next(pid for pid in node.processes() if name_of(pid) == "rfaas-keeper")
        os.kill(keeper, signal.SIGKILL)
        site.kill(executor)
        lease.close()
    node.start()
    until(lambda: not node.boxes(), "no folder of a container")
    assert ["docker", "rm", "--force", name] in node.commands()


# What is not installed ---------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says", "hint"),
    [
        (
            {"container__engine": "sarus"},
            "sarus, which container.engine names, is not installed on this node",
            "hint: install sarus from its makers",
        ),
        (
            {"container__engine": "docker", "container__docker_rdma_sriov": "true"},
            "docker_rdma_sriov, which container.docker_rdma_sriov wants, is not installed",
            "hint: as root: docker run --net=host -v /usr/bin:/tmp rdma/container_tools_installer",
        ),
    ],
    ids=["engine", "wrapper"],
)
class TestWhatIsNotInstalled:
    def node(self, site: Site, settings: dict[str, str]) -> Site:
        """A site where of all engines docker and runc, if this machine has it, are installed."""
        Recorded(site, "docker", "docker").site.set(**settings)
        for name in ("sarus", "docker_rdma_sriov"):
            if shutil.which(name):
                pytest.skip(f"{name} is installed here")
        return site

    def test_demanded(
        self,
        site: Site,
        settings: dict[str, str],
        says: str,
        hint: str,
    ) -> None:
        self.node(site, settings).set(sandbox__levels="container")
        child = site.start_unready("executor")
        assert child.wait() == 78
        assert f"isolation container cannot be had on this node: engine: {says}" in child.stderr
        assert hint in child.stderr

    def test_not_offered(
        self,
        site: Site,
        shipped: Path,
        settings: dict[str, str],
        says: str,
        hint: str,
    ) -> None:
        self.node(site, settings)
        executor = site.start("executor")
        assert f"isolation container is not granted: it lacks engine: {says}" in executor.stderr
        assert hint in executor.stderr
        session = site.session(client__executor=site.address("executor"))
        refused = pytest.raises(CapacityError, match="no node offers isolation 'container'")
        with session, refused:
            session.lease(library=shipped, isolation="container", image=f"name@{DIGEST}")


def test_engine_that_cannot_be_run(site: Site, shipped: Path) -> None:
    """It was there as the node started, and what it is run by is gone."""
    node = with_nic(site)
    site.set(lease__image=f"group/name@{DIGEST}")
    node.start()
    (site.path / "bin/docker_rdma_sriov").write_text("#!/nowhere/python\n")
    missing = pytest.raises(SystemCallError, match=r"docker_rdma_sriov, .* is not installed")
    with node.session() as session, missing as refused:
        session.lease(library=shipped)
    assert "rdma/container_tools_installer" in refused.value.hint
    until(lambda: not node.processes() and not node.boxes(), "the end of all containers")


def test_what_an_engine_said_last() -> None:
    """Rootless podman, where /dev/fuse is root's alone: its last line is ": exit status 1"."""
    text = "Error: mounting storage\nfuse: failed\nfuse-overlayfs: cannot mount\n: exit status 1\n"
    assert last_word(text) == "fuse-overlayfs: cannot mount: exit status 1"
    assert last_word("one\ntwo\n\n") == "two"
    assert last_word("") == ""
