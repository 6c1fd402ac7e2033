"""Images: named by digest, fetched, checked, unpacked; and what is said where that fails."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from msgspec.structs import replace

from rfaas.config import ContainerConfig
from rfaas.core.image import REFERENCE_MAX, parse
from rfaas.diagnose import images as asked
from rfaas.errors import ImageError, SystemCallError, UsageError
from rfaas.launch import unpack
from tests.containers.conftest import Node
from tests.harness import images
from tests.harness.images import Layout
from tests.harness.registry import Registry

DIGEST = "sha256:" + "0" * 64
CODE = (
    "import sys; sys.path.insert(0, {!r}); "
    "from rfaas.launch.unpack import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.mark.parametrize(
    "text",
    [
        f"registry.example:5000/group/name@{DIGEST}",
        f"group/name:1.0@{DIGEST}",
        f"name@{DIGEST}",
        f"oci:/srv/images/tiny@{DIGEST}",
    ],
)
def test_name(text: str) -> None:
    image = parse(text)
    assert image.digest == DIGEST
    assert str(image) == text.replace(":1.0", "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("debian", "is not named by a digest"),
        ("debian:12", "is not named by a digest"),
        ("debian@sha256:abc", "is not named by a digest"),
        (f"--privileged@{DIGEST}", "is no name of an image"),
        (f"a b@{DIGEST}", "is no name of an image"),
        (f"@{DIGEST}", "is no name of an image"),
        (f"name:-x@{DIGEST}", "is no tag"),
        (f"oci:relative@{DIGEST}", "is no absolute path"),
        (f"oci:/a/../b@{DIGEST}", "is no absolute path"),
        ("n" * (REFERENCE_MAX - 71) + f"@{DIGEST}", "is too long"),
    ],
)
def test_name_that_is_none(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(text)


def unpacked(layout: Layout, tree: Path, *, architecture: str = images.OURS) -> str:
    """Unpack as an executor does; what was said against it, or ""."""
    code = CODE.format(str(Path(unpack.__file__).parents[2]))
    command = [sys.executable, "-I", "-c", code, str(layout.path), str(tree), architecture]
    run = subprocess.run([*command, layout.digest], capture_output=True, text=True, check=False)
    assert (run.returncode == 0) == (run.stderr == ""), run.stderr
    return run.stderr.strip()


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, to
    return entry


def test_layers(tmp_path: Path) -> None:
    lower = images.layer({"a/old": b"1", "a/kept": b"2", "b/x": b"3", "file": b"4"})
    upper = images.layer({"a/.wh.old": b"", "b/.wh..wh..opq": b"", "b/y": b"5", "file/in": b"6"})
    layout = Layout(tmp_path / "layout", [lower, upper])
    assert unpacked(layout, tmp_path / "tree") == ""
    tree = tmp_path / "tree"
    assert sorted(os.listdir(tree / "a")) == ["kept"]
    assert sorted(os.listdir(tree / "b")) == ["y"]
    assert (tree / "file/in").read_bytes() == b"6"


def test_nothing_leads_out_of_a_tree(tmp_path: Path) -> None:
    """A link to the outside, then a file through it."""
    (tmp_path / "outside").mkdir()
    outside = str(tmp_path / "outside")
    evil = images.layer({}, [link("out", outside), link("../up", outside)])
    through = images.layer({"out/file": b"x", "../../../../etc/rfaas-test": b"x"})
    device = tarfile.TarInfo("dev/mem")
    device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 1, 1
    special = images.layer({"set": b"x"}, [device])
    layout = Layout(tmp_path / "layout", [evil, through, special])
    unpacked(layout, tmp_path / "tree")
    assert os.listdir(outside) == []
    assert not Path("/etc/rfaas-test").exists()
    assert not (tmp_path / "tree/dev/mem").exists()


def test_damage(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout", [images.layer({"file": b"content"})])
    blobs = (layout.path / "blobs/sha256").iterdir()
    (layer,) = (one for one in blobs if one.read_bytes()[:2] == b"\x1f\x8b")
    layer.write_bytes(images.layer({"file": b"another"}))
    said = unpacked(layout, tmp_path / "tree")
    assert said.endswith("is not what its digest says")
    layer.write_bytes(layer.read_bytes()[:40])
    assert "damaged" in unpacked(layout, tmp_path / "tree-2")
    layout.blob(layout.digest).write_bytes(b"{}")
    assert "is not what its digest says" in unpacked(layout, tmp_path / "tree-3")


def test_other_architecture(tmp_path: Path) -> None:
    other = images.OTHER
    layout = Layout(tmp_path / "layout", [images.layer({})], architecture=other)
    assert unpacked(layout, tmp_path / "tree") == f"it is for {other}, this node is {images.OURS}"


# Leases ---------------------------------------------------------------------

runc = pytest.mark.parametrize("made", ["runc"], indirect=True)
podman = pytest.mark.parametrize("made", ["podman"], indirect=True)
either = pytest.mark.parametrize("made", ["runc", "podman"], indirect=True)


@runc
def test_lease_without_an_image(node: Node, shipped: Path) -> None:
    needs = pytest.raises(UsageError, match="level container needs an image")
    with node.session(lease__image="") as session, needs:
        session.lease(library=shipped)


@runc
def test_image_without_a_digest(node: Node, shipped: Path) -> None:
    with node.session() as session, pytest.raises(UsageError, match="not named by a digest"):
        session.lease(library=shipped, image="debian:12")


@runc
def test_image_that_the_node_does_not_take(made: Node, shipped: Path) -> None:
    made.site.set(container__images="registry.example/*")
    made.start()
    with made.session() as session:
        with pytest.raises(UsageError, match="this node takes no image oci:") as refused:
            session.lease(library=shipped)
        assert "registry.example" in refused.value.hint


@either
def test_registry_with_credentials(
    made: Node, shipped: Path, own_registry: Registry, pushed: str
) -> None:
    made.site.set(container__registry_auth="", container__registry_insecure="true")
    made.start()
    name = pushed if made.engine == "runc" else another(own_registry, made)
    with made.session() as session:
        with pytest.raises(ImageError, match=r"authentication required|unauthorized") as refused:
            session.lease(library=shipped, image=name)
        assert "registry_auth" in refused.value.hint
    made.site.set(container__registry_auth=own_registry.auth)
    made.restart()
    told: list[str] = []
    with made.session() as session:
        session.progress = told.append
        with session.lease(library=shipped, image=name) as lease:
            assert bytes(lease.call("echo", b"x")) == b"x"
        assert told[0] == f"fetching {name}"
        assert any("Copying blob" in line or "Writing manifest" in line for line in told)
        told.clear()
        with session.lease(library=shipped, image=name):
            assert told == []  # it is there


def another(registry: Registry, node: Node) -> str:
    """An image that podman has not fetched yet."""
    unlike = images.layer(images.system_libraries() | {"etc/unlike": os.urandom(8)})
    return registry.push(Layout(node.site.path / "unlike", [unlike]), "group/unlike")


@either
def test_image_that_is_not_there(made: Node, shipped: Path, own_registry: Registry) -> None:
    made.site.set(container__registry_auth=own_registry.auth, container__registry_insecure="true")
    made.start()
    with made.session() as session:
        missing = f"{own_registry.address}/group/none@{DIGEST}"
        with pytest.raises(ImageError, match=r"cannot fetch image .*group/none") as refused:
            session.lease(library=shipped, image=missing)
        assert refused.value.hint == "is the digest right, and was the image pushed?"


@either
def test_registry_is_down(made: Node, shipped: Path) -> None:
    made.site.set(container__registry_insecure="true")
    made.start()
    with made.session() as session:
        with pytest.raises(ImageError, match="connection refused") as refused:
            session.lease(library=shipped, image=f"127.0.0.1:1/group/name@{DIGEST}")
        assert refused.value.hint == "is the registry up, and can this node reach it?"


@either
def test_node_that_fetches_nothing(made: Node, shipped: Path) -> None:
    made.site.set(container__pull="never")
    made.start()
    with made.session() as session, pytest.raises(ImageError, match="it fetches none"):
        session.lease(library=shipped, image=f"127.0.0.1:1/group/name@{DIGEST}")


@runc
def test_image_for_another_architecture(node: Node, shipped: Path, tmp_path: Path) -> None:
    other = images.OTHER
    layout = Layout(tmp_path / "other", [images.layer({})], architecture=other)
    with node.session() as session, pytest.raises(UsageError, match=f"it is for {other}"):
        session.lease(library=shipped, image=layout.reference)


@podman
def test_image_for_another_architecture_in_a_store(
    node: Node, shipped: Path, tmp_path: Path, own_registry: Registry
) -> None:
    """Podman fetches, keeps and runs it with no more than a warning."""
    other = images.layer(images.system_libraries() | {"etc/other": os.urandom(8)})
    layout = Layout(tmp_path / "other", [other], architecture=images.OTHER)
    name = own_registry.push(layout, "group/other")
    words = f"it is for {images.OTHER}, this node is {images.OURS}"
    with node.session() as session:
        for _ in range(2):  # fetched, and there already
            with pytest.raises(UsageError, match=words):
                session.lease(library=shipped, image=name)


@runc
def test_image_without_a_c_library(node: Node, shipped: Path, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "empty", [images.layer({})])
    with node.session() as session:
        with pytest.raises(SystemCallError, match="could not be started") as refused:
            session.lease(library=shipped, image=layout.reference)
        assert "glibc" in refused.value.hint


# The doctor's question ------------------------------------------------------------


def test_doctor_asks_a_registry(own_registry: Registry, pushed: str, tmp_path: Path) -> None:
    """As `rfaas doctor` does: by skopeo-inspect(1), with the words of this one."""
    foreign = Layout(tmp_path / "other", [images.layer({})], architecture=images.OTHER)
    other = own_registry.push(foreign, "group/other")
    auth, store = str(own_registry.auth), str(tmp_path / "store")
    known = ContainerConfig(engine="runc", store=store, registry_auth=auth, registry_insecure=True)
    cases = {
        "there": (known, pushed),
        "architecture": (known, other),
        "missing": (known, f"{own_registry.address}/group/none@{DIGEST}"),
        "down": (known, f"127.0.0.1:1/group/name@{DIGEST}"),
        "denied": (replace(known, registry_auth=""), pushed),
        "plain": (replace(known, registry_insecure=False), pushed),
    }
    found = {state: asked.find(*case).image for state, case in cases.items()}
    assert found == {state: state for state in cases}


@podman
def test_doctor_asks_podman(node: Node, shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What podman has is here, though its registry is asked no more."""
    with node.session() as session, session.lease(library=shipped):
        pass
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", node.site.environ["CONTAINERS_STORAGE_CONF"])
    image = node.site.environ["RFAAS_LEASE_IMAGE"]
    found = asked.find(ContainerConfig(engine="podman"), image)
    assert (found.image, found.image_said) == ("here", "in podman's store")
