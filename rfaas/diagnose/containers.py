"""What levels `bubblewrap` and `container` need of a machine: facts, and the check of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

from rfaas.core.image import LAYOUT
from rfaas.diagnose.images import ENGINES, OF_TREES
from rfaas.diagnose.records import Facts, Finding, Wants

PROGRAMS = (
    *("bwrap", "runc", "crun", "podman", "docker", "docker_rdma_sriov"),
    *("apptainer", "singularity", "sarus", "skopeo", "newuidmap"),
)
TRY_TIMEOUT_S = 5
USE = ("container",)  # what the checks of containers may find blocked
PACKAGES = {"runc": "runc skopeo", "crun": "crun skopeo", "podman": "podman", "docker": "docker.io"}
SRIOV_INSTALL = "docker run --net=host -v /usr/bin:/tmp rdma/container_tools_installer"
_TRY = ("--unshare-user", "--disable-userns", "--unshare-pid", "--ro-bind", "/", "/", "true")


def programs() -> dict[str, str]:
    """Where each program is; "" where it is not on PATH."""
    return {name: shutil.which(name) or "" for name in PROGRAMS}


def bubblewrap_error() -> str:
    """Try it: why bwrap confines nothing here, or ""."""
    if shutil.which("bwrap") is None:
        return "not installed"
    try:
        done = subprocess.run(
            ["bwrap", *_TRY],
            check=False,
            capture_output=True,
            text=True,
            timeout=TRY_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"status {done.returncode}"


def bubblewrap(facts: Facts, wants: Wants) -> Iterator[Finding]:
    """Level `bubblewrap`."""
    if not facts.bubblewrap_error:
        yield Finding(check="bubblewrap", text="bwrap works")
        return
    mend = ["apt-get install bubblewrap"]
    if facts.programs.get("bwrap"):
        mend = ["bwrap 0.8 or newer, and user namespaces for who runs the executor"]
    yield Finding(
        check="bubblewrap",
        text=f"no level `bubblewrap`: bwrap: {facts.bubblewrap_error}",
        is_hint=True,
        mend=mend,
    )


def containers(facts: Facts, wants: Wants) -> Iterator[Finding]:
    """Level `container`: an engine, and what fetches its images."""
    engines = [name for name in ENGINES if facts.programs.get(name)]
    if not engines:
        yield Finding(
            check="containers",
            text="no level `container`: no engine is installed",
            blocks=USE,
            mend=["apt-get install runc skopeo"],
        )
        return
    engine = _engine(facts, wants)
    if engine not in engines:
        package = PACKAGES.get(engine)
        yield Finding(
            check="containers",
            text=f"no level `container`: {engine}, which container.engine names, is not installed; "
            f"{', '.join(engines)} would be",
            blocks=USE,
            mend=[
                f"apt-get install {package}" if package else f"install {engine} from its makers",
                f"or --set container.engine={engines[0]}",
            ],
        )
        return
    text, mend, is_blocked = ", ".join(engines), [], False
    if not facts.programs.get("skopeo") and engine in OF_TREES:
        text += f"; no skopeo, so {engine} runs images of layouts on this node alone"
        mend.append("apt-get install skopeo")
    if engine == "podman" and not facts.is_root and not facts.programs.get("newuidmap"):
        text += "; no newuidmap: podman knows one user in an image"
        mend.append("apt-get install uidmap")
    if engine == "crun" and not facts.is_root and facts.cgroup.kind == "hybrid":
        text += "; crun refuses hybrid cgroups from who is not root"
        is_blocked = True
        mend.append("apt-get install runc")
    if facts.user_namespace_error and not facts.is_root and engine != "docker":
        text += "; without user namespaces none of them works for this user"
        is_blocked = True
    yield Finding(
        check="containers",
        text=text,
        blocks=USE if is_blocked else (),
        is_hint=bool(mend) and not is_blocked,
        mend=mend,
    )


def _engine(facts: Facts, wants: Wants) -> str:
    """Which one a node would take; "": none is there."""
    if wants.engine != "auto":
        return wants.engine
    return next((name for name in ENGINES if facts.programs.get(name)), "")


def sriov(facts: Facts, wants: Wants) -> Iterator[Finding]:
    """Docker's wrapper that gives each container a NIC."""
    if not wants.docker_rdma_sriov:
        return
    if not facts.programs.get("docker_rdma_sriov"):
        yield Finding(
            check="container NIC",
            text="docker_rdma_sriov, which container.docker_rdma_sriov wants, is not installed",
            blocks=USE,
            mend=[SRIOV_INSTALL],
        )
    elif wants.engine not in ("auto", "docker"):
        yield Finding(
            check="container NIC",
            text=f"container.docker_rdma_sriov does nothing with container.engine {wants.engine}",
            is_hint=True,
            mend=["--set container.engine=docker"],
        )


def credentials(facts: Facts, wants: Wants) -> Iterator[Finding]:
    """`container.registry_auth`."""
    if not wants.registry_auth:
        return
    found, name = facts.container, f"container.registry_auth: {wants.registry_auth}"
    if found.registry_auth_error:
        login = f"skopeo login --authfile {wants.registry_auth} REGISTRY"
        text = f"{name}: {found.registry_auth_error}"
        mend = [f"{login}    # as the executor's user"]
        yield Finding(check="registry", text=text, blocks=USE, mend=mend)
    elif found.registry_auth_mode & 0o077:
        yield Finding(
            check="registry",
            text=f"{name}: others may read it (mode {found.registry_auth_mode:04o})",
            is_hint=True,
            mend=[f"chmod 600 {wants.registry_auth}"],
        )
    else:
        yield Finding(check="registry", text=f"{name} can be read")


def store(facts: Facts, wants: Wants) -> Iterator[Finding]:
    """`container.store`, of engines that have none of their own."""
    if facts.container.store_error and _engine(facts, wants) in OF_TREES:
        yield Finding(
            check="images",
            text=f"container.store: {facts.container.store_error}",
            blocks=USE,
            mend=[
                f"install -d -m 700 -o USER {wants.store}    # the executor's",
                "or --set container.store=DIRECTORY",
            ],
        )


def image(facts: Facts, wants: Wants) -> Iterator[Finding]:
    """`lease.image`: whether it is there, and what hinders it."""
    state, said = facts.container.image, facts.container.image_said
    if not wants.image or not state:
        return
    if state in ("here", "there"):
        yield Finding(check="image", text=f"{wants.image}: {said}")
        return
    yield Finding(
        check="image",
        text=f"lease.image {wants.image}: {said}",
        blocks=() if state == "unknown" else USE,
        is_hint=state == "unknown",
        mend=list(_image_mend(state, facts, wants)),
    )


def _image_mend(state: str, facts: Facts, wants: Wants) -> Iterator[str]:
    name, _, digest = wants.image.rpartition("@")
    place, registry = name.removeprefix(LAYOUT), name.partition("/")[0]
    auth = wants.registry_auth or "FILE"
    insecure = "--set container.registry_insecure=true"
    mend = {
        "unnamed": "podman images --digests    # NAME@sha256:DIGEST",
        "engine": "--set container.engine=runc",
        "pattern": f"--set 'container.images={name}'    # beside the others",
        "pull": "--set container.pull=missing",
        "no-layout": f"skopeo copy docker://NAME@{digest} oci:{place}",
        "missing": f"skopeo copy --preserve-digests SOURCE docker://{name}    # to push it",
        "denied": f"skopeo login --authfile {auth} {registry}",
        "down": f"curl -v https://{registry}/v2/    # start it, or open the way to it",
        "plain": f"{insecure}    # it speaks no TLS",
        "architecture": f"podman build --platform linux/{facts.container.architecture}",
        "unknown": f"skopeo inspect docker://{wants.image}",
    }
    if state in mend:
        yield mend[state]
    if state == "denied":
        yield f"--set container.registry_auth={auth}"


CONTAINERS = (containers, sriov, credentials, store, image)
