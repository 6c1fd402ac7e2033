"""What the doctor says of containers, by facts of machines that are not here and of this one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rfaas.config import ContainerConfig
from rfaas.diagnose import containers, images
from rfaas.diagnose.records import Container
from rfaas.sandbox import engines
from tests.diagnose.machines import WANTS, facts, found, only
from tests.diagnose.test_commands import EX_UNAVAILABLE, rfaas
from tests.harness import images as made

DIGEST = "sha256:" + "0" * 64
IMAGE = f"registry.example:5000/group/name@{DIGEST}"
RUNC = {"runc": "/usr/sbin/runc", "skopeo": "/usr/bin/skopeo"}
DOCKER = {"docker": "/usr/bin/docker"}
AUTH = "/etc/rfaas/auth.json"


def wants(**changes: Any) -> Any:
    return msgspec.structs.replace(WANTS, **changes)


def test_it_knows_the_engines() -> None:
    """They are modules above the doctor, which may not import them."""
    table = engines.table()
    assert tuple(table) == images.ENGINES
    assert tuple(name for name, one in table.items() if one.takes_trees) == images.OF_TREES
    packages = {name: one.package for name, one in table.items() if one.package}
    assert {name: line.split()[0] for name, line in containers.PACKAGES.items()} == packages
    assert containers.SRIOV_INSTALL == engines.SRIOV_INSTALL


@pytest.mark.parametrize(
    ("engine", "mends"),
    [
        ("crun", "apt-get install crun skopeo"),
        ("podman", "apt-get install podman"),
        ("docker", "apt-get install docker.io"),
        ("sarus", "install sarus from its makers"),
    ],
)
def test_an_engine_that_is_named(engine: str, mends: str) -> None:
    """Another one that is installed does not stand in for it."""
    finding = only("containers", facts(programs=RUNC), wants(engine=engine))
    assert list(finding.blocks) == ["container"]
    assert f"{engine}, which container.engine names, is not installed" in finding.text
    assert finding.mend == [mends, "or --set container.engine=runc"]


def test_a_wrapper_that_is_wanted() -> None:
    one = wants(engine="docker", docker_rdma_sriov=True)
    finding = only("container NIC", facts(programs=DOCKER), one)
    assert list(finding.blocks) == ["container"]
    assert "rdma/container_tools_installer" in finding.mend[0]
    both = facts(programs=DOCKER | {"docker_rdma_sriov": "/usr/bin/docker_rdma_sriov"})
    assert found("container NIC", both, one) == []
    assert only("container NIC", both, wants(engine="runc", docker_rdma_sriov=True)).is_hint


@pytest.mark.parametrize(
    ("container", "blocks", "says", "mends"),
    [
        (
            Container(registry_auth_error="Permission denied"),
            *(["container"], "Permission denied", f"skopeo login --authfile {AUTH} REGISTRY"),
        ),
        (Container(registry_auth_mode=0o644), [], "(mode 0644)", f"chmod 600 {AUTH}"),
        (Container(), [], "can be read", ""),
    ],
)
def test_credentials(container: Container, blocks: list[str], says: str, mends: str) -> None:
    finding = only("registry", facts(container=container), wants(registry_auth=AUTH))
    assert list(finding.blocks) == blocks
    assert says in finding.text
    assert "\n".join(finding.mend).startswith(mends)


def test_a_store_that_cannot_be_written() -> None:
    broken = Container(store_error="/srv belongs to user 5")
    finding = only("images", facts(container=broken, programs=RUNC), wants(store="/srv/images"))
    assert list(finding.blocks) == ["container"]
    assert finding.text == "container.store: /srv belongs to user 5"
    assert "/srv/images" in finding.mend[0]
    assert found("images", facts(container=broken, programs=DOCKER), wants(store="/srv")) == []


@pytest.mark.parametrize(
    ("state", "mends"),
    [
        ("missing", "docker://registry.example:5000/group/name"),
        ("denied", "skopeo login --authfile FILE registry.example:5000"),
        ("down", "curl -v https://registry.example:5000/v2/"),
        ("plain", "--set container.registry_insecure=true"),
        ("architecture", "podman build --platform linux/amd64"),
        ("unnamed", "podman images --digests"),
        ("engine", "--set container.engine=runc"),
        ("pattern", "--set 'container.images=registry.example:5000/group/name'"),
        ("pull", "--set container.pull=missing"),
    ],
)
def test_an_image_that_is_not_to_be_had(state: str, mends: str) -> None:
    container = Container(image=state, image_said="so it is")
    finding = only("image", facts(container=container), wants(image=IMAGE))
    assert list(finding.blocks) == ["container"]
    assert finding.text == f"lease.image {IMAGE}: so it is"
    assert mends in finding.mend[0]


def test_an_image_that_nobody_could_ask_for_blocks_nothing() -> None:
    container = Container(image="unknown", image_said="no skopeo")
    finding = only("image", facts(container=container), wants(image=IMAGE))
    assert (list(finding.blocks), finding.is_hint) == ([], True)
    assert found("image", facts(), WANTS) == []


# This machine ------------------------------------------------------------------


def image(tmp_path: Path, name: str, engine: str = "runc") -> tuple[str, str]:
    config = ContainerConfig(engine=engine, store=str(tmp_path / "store"))  # type: ignore[arg-type]
    container = images.find(config, name)
    return container.image, container.image_said


def test_layouts(tmp_path: Path) -> None:
    good = made.Layout(tmp_path / "good", [made.layer({})])
    assert image(tmp_path, good.reference) == ("here", f"in {good.path}")
    state, said = image(tmp_path, f"oci:{tmp_path}/none@{DIGEST}")
    assert (state, said) == ("no-layout", f"{tmp_path}/none is no folder in the OCI image layout")
    assert image(tmp_path, f"oci:{good.path}@{DIGEST}") == (
        *("no-layout", f"{DIGEST} is not in {good.path}"),
    )
    other = made.Layout(tmp_path / "other", [made.layer({})], architecture=made.OTHER)
    words = f"it is for {made.OTHER}, this node is {made.OURS}"
    assert image(tmp_path, other.reference) == ("architecture", words)
    good.blob(good.digest).write_bytes(b"[]")
    assert image(tmp_path, good.reference) == ("no-layout", f"{good.path} is damaged")
    assert image(tmp_path, other.reference, "podman")[0] == "engine"
    assert image(tmp_path, "debian:12")[0] == "unnamed"


def test_an_image_that_was_unpacked(tmp_path: Path) -> None:
    (tmp_path / "store" / DIGEST.replace(":", "-") / "tree").mkdir(parents=True)
    assert image(tmp_path, IMAGE) == ("here", f"unpacked in {tmp_path}/store")


@pytest.mark.parametrize(
    ("state", "settings"), [("pattern", {"images": "oci:* other/*"}), ("pull", {"pull": "never"})]
)
def test_an_image_that_this_node_does_not_take(
    tmp_path: Path, state: str, settings: dict[str, Any]
) -> None:
    config = ContainerConfig(engine="runc", store=str(tmp_path / "store"), **settings)
    assert images.find(config, IMAGE).image == state


def test_an_image_of_the_configured_registry(tmp_path: Path) -> None:
    """Docker asks for a name without a registry there: nobody answers at that port."""
    config = ContainerConfig(
        engine="docker", store=str(tmp_path), docker_registry="127.0.0.1:1", registry_insecure=True
    )
    container = images.find(config, f"name@{DIGEST}")
    if container.image == "unknown":
        pytest.skip(container.image_said)  # no skopeo
    assert container.image == "down"
    assert "127.0.0.1:1" in container.image_said


def test_files(tmp_path: Path) -> None:
    auth = tmp_path / "auth.json"
    config = ContainerConfig(registry_auth=str(auth), store=str(tmp_path / "new/store"))
    assert images.find(config, "").registry_auth_error == "No such file or directory"
    auth.write_text("{}")
    auth.chmod(0o640)
    known = images.find(config, "")
    assert (known.registry_auth_error, known.registry_auth_mode) == ("", 0o640)
    assert known.store_error == ""
    (tmp_path / "new").write_text("")
    assert images.find(config, "").store_error == f"{tmp_path}/new is no directory"
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    config = ContainerConfig(store=str(open_to_all))
    assert images.find(config, "").store_error == f"others may write to {open_to_all} (mode 0777)"


def test_doctor(tmp_path: Path) -> None:
    """All of it through the command, with what the configuration names."""
    (tmp_path / "docker").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "docker").chmod(0o755)
    flags = ["container.engine=sarus", "container.docker_rdma_sriov=true"]
    flags += [f"container.registry_auth={tmp_path}/none", f"lease.image=oci:/nowhere@{DIGEST}"]
    settings = [word for flag in flags for word in ("--set", flag)]
    done = rfaas("doctor", "--json", "--need", "container", *settings, PATH=str(tmp_path))
    assert done.returncode == EX_UNAVAILABLE, done.stderr
    said = json.loads(done.stdout)
    assert said["works"]["shm"]
    assert not said["works"]["container"]
    blocking = [one["check"] for one in said["findings"] if "container" in one.get("blocks", ())]
    assert {"containers", "container NIC", "registry", "image"} <= set(blocking)
    assert all(one["mend"] for one in said["findings"] if one["check"] in blocking)
