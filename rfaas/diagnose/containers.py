"""What levels `bubblewrap` and `container` need of a machine: facts, and the check of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

from rfaas.diagnose.records import Facts, Finding, Wants

PROGRAMS = (
    *("bwrap", "runc", "crun", "podman", "docker", "docker_rdma_sriov"),
    *("apptainer", "singularity", "sarus", "skopeo", "newuidmap"),
)
ENGINES = ("runc", "crun", "podman", "docker", "apptainer", "singularity", "sarus")
OF_TREES = ("runc", "crun", "apptainer", "singularity")  # fetched by skopeo
TRY_TIMEOUT_S = 5
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
            is_hint=True,
            mend=["apt-get install runc skopeo"],
        )
        return
    text, mend = ", ".join(engines), []
    if not facts.programs.get("skopeo") and engines[0] in OF_TREES:
        text += f"; no skopeo, so {engines[0]} runs images of layouts on this node alone"
        mend.append("apt-get install skopeo")
    if "podman" in engines and not facts.is_root and not facts.programs.get("newuidmap"):
        text += "; no newuidmap: podman knows one user in an image"
        mend.append("apt-get install uidmap")
    if "crun" in engines and "runc" not in engines and facts.cgroup.kind == "hybrid":
        text += "; crun refuses hybrid cgroups from who is not root"
        mend.append("apt-get install runc")
    if facts.user_namespace_error and not facts.is_root:
        text += "; without user namespaces none of them works for this user"
    yield Finding(check="containers", text=text, is_hint=bool(mend), mend=mend)
