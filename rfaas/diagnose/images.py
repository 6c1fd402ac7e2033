"""What the configuration names for containers, as it is on this machine and in a registry: facts.

An image is asked for as a node would come by it: in its layout, among those that were unpacked
or that the engine keeps, at last in its registry, which gets seconds to answer.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from fnmatch import fnmatchcase
from typing import Any

from rfaas.config import ContainerConfig
from rfaas.core.image import Image, architecture, cause, parse
from rfaas.diagnose.records import Container
from rfaas.errors import UsageError

REGISTRY_TIMEOUT_S = 5
STORE_TIMEOUT_S = 10  # of an engine: podman looks through its store as it starts
BLOB_MAX = 4 << 20  # of a manifest or configuration, as in launch/unpack.py
WITH_STORE = ("podman", "docker")  # engines that tell what they have
OF_TREES = ("runc", "crun", "apptainer", "singularity")  # fetched by skopeo
ENGINES = ("runc", "crun", "podman", "docker", "apptainer", "singularity", "sarus")  # as "auto"


def find(config: ContainerConfig, image: str) -> Container:
    """All of it."""
    error, mode = _registry_auth(config.registry_auth)
    state, said = _image(config, image) if image else ("", "")
    return Container(
        registry_auth_error=error,
        registry_auth_mode=mode,
        store_error=_store_error(config.store) if config.store else "",
        architecture=architecture(os.uname().machine),
        image=state,
        image_said=said,
    )


def _registry_auth(path: str) -> tuple[str, int]:
    if not path:
        return "", 0o600
    try:
        with open(path, "rb") as file:
            return "", stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    except OSError as error:
        return error.strerror or str(error), 0o600


def _store_error(path: str) -> str:
    """Why no folder can be made in it; what is not there yet would be made."""
    there = os.path.abspath(path)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        return f"{there} is no directory"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} cannot be written to by this user"
    if there == os.path.abspath(path):
        found = os.lstat(there)
        if found.st_uid != os.geteuid():
            return f"{there} belongs to user {found.st_uid}"
        if found.st_mode & 0o022:
            return f"others may write to {there} (mode {stat.S_IMODE(found.st_mode):04o})"
    return ""


def _image(config: ContainerConfig, text: str) -> tuple[str, str]:
    """How an image is, in a word, and what was said of it."""
    try:
        image = parse(text)
    except UsageError as error:
        return "unnamed", error.text
    before = str(image).partition("@")[0]
    if not any(fnmatchcase(before, pattern) for pattern in config.images.split()):
        return "pattern", f"this node takes {config.images or 'none'} (container.images)"
    installed = [name for name in ENGINES if shutil.which(name)]
    engine: str = config.engine
    if engine == "auto":
        engine = installed[0] if installed else ""
    if image.is_layout:
        if engine and engine not in OF_TREES:
            return "engine", f"{engine} runs no image from a layout"
        return _in_layout(image)
    if engine == "docker" and config.docker_registry and "/" not in image.name:
        image = image._replace(name=f"{config.docker_registry}/{image.name}")
    if engine in OF_TREES:
        if os.path.isdir(f"{config.store}/{image.digest.replace(':', '-')}/tree"):
            return "here", f"unpacked in {config.store}"
    elif engine in WITH_STORE and engine in installed:
        command = [engine, "image", "inspect", "--format", "{{.Architecture}}", str(image)]
        status, lines = _run(command, STORE_TIMEOUT_S)
        if status == 0:
            return _judged("here", lines[-1] if lines else "", f"in {engine}'s store")
    if config.pull == "never":
        return "pull", "it is not on this node, which fetches none (container.pull)"
    return _in_registry(config, image)


def _in_registry(config: ContainerConfig, image: Image) -> tuple[str, str]:
    """By skopeo-inspect(1)."""
    if shutil.which("skopeo") is None:
        return "unknown", "skopeo, which asks its registry, is not installed"
    command = ["skopeo", "--command-timeout", f"{REGISTRY_TIMEOUT_S}s", "inspect", "--no-tags"]
    if config.registry_auth:
        command += ["--authfile", config.registry_auth]
    if config.registry_insecure:
        command.append("--tls-verify=false")
    status, lines = _run([*command, f"docker://{image}"], REGISTRY_TIMEOUT_S + 1)
    if status:
        said = lines[-1] if lines else f"skopeo ended with status {status}"
        said = said.partition('msg="')[2].rstrip('"') or said
        return cause(lines) or "unknown", said[:1500]
    try:
        found = json.loads("\n".join(lines)).get("Architecture", "")
    except (ValueError, AttributeError):
        return "unknown", "skopeo's answer is no JSON object"
    return _judged("there", str(found), "in its registry")


def _in_layout(image: Image) -> tuple[str, str]:
    wanted = architecture(os.uname().machine)
    if not os.path.isdir(f"{image.name}/blobs/sha256"):
        return "no-layout", f"{image.name} is no folder in the OCI image layout"
    try:
        manifest = _blob(image.name, image.digest)
        if "manifests" in manifest:
            platforms = {
                str(one.get("platform", {}).get("architecture")): str(one.get("digest"))
                for one in manifest["manifests"]
            }
            if wanted not in platforms:
                return _judged("here", ", ".join(sorted(platforms)), "")
            manifest = _blob(image.name, platforms[wanted])
        config = _blob(image.name, str(manifest["config"]["digest"]))
    except FileNotFoundError as error:
        digest = os.path.basename(str(error.filename))
        return "no-layout", f"sha256:{digest} is not in {image.name}"
    except OSError as error:
        return "unknown", f"{error.filename}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "no-layout", f"{image.name} is damaged"
    return _judged("here", str(config.get("architecture", "")), f"in {image.name}")


def _blob(layout: str, digest: str) -> dict[str, Any]:
    with open(f"{layout}/blobs/sha256/{os.path.basename(digest[len('sha256:') :])}", "rb") as file:
        found: dict[str, Any] = json.loads(file.read(BLOB_MAX))
        return found


def _judged(state: str, found: str, where: str) -> tuple[str, str]:
    wanted = architecture(os.uname().machine)
    if found == wanted:
        return state, where
    return "architecture", f"it is for {found or 'no known architecture'}, this node is {wanted}"


def _run(command: list[str], timeout_s: float) -> tuple[int, list[str]]:
    """Its status, and what it said."""
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return 1, [f"timeout: {command[0]} did not end within {timeout_s} s"]
    except OSError as error:
        return 1, [str(error)]
    text = done.stdout if done.returncode == 0 else done.stderr
    return done.returncode, [line for line in text.splitlines() if line.strip()]
