"""Names of container images, as leases ask for them, and what tools say of them.  No I/O.

    registry.example:5000/group/name@sha256:DIGEST     fetched from a registry
    group/name:tag@sha256:DIGEST                       the tag is for people
    oci:/path/to/layout@sha256:DIGEST                  a folder in the OCI image layout, on the node

Always by digest: a tag may mean another image tomorrow; a digest cannot, and is checked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from rfaas.errors import CapacityError, ImageError, RfaasError, UsageError

REFERENCE_MAX = 512
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
# What registries allow (OCI Distribution Specification, "pulling manifests"), with an optional
# host; nothing of it can be taken for a flag of a command.
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]*(:[0-9]+)?(/[a-z0-9][a-z0-9._-]*)*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")
_PATH = re.compile(r"/[A-Za-z0-9._/-]+\Z")
LAYOUT = "oci:"
# What skopeo, podman and docker say in each case; the first that is found counts.
CAUSES = {
    "architecture": ("no image found in", "architecture"),
    "denied": ("unauthorized", "authentication required", "denied"),
    "missing": ("manifest unknown", "name unknown", "not found"),
    "down": ("connection refused", "no such host", "timeout"),
    "full": ("no space left",),
    "plain": ("server gave http response",),
}
_REFUSALS: dict[str, tuple[type[RfaasError], str]] = {
    "architecture": (UsageError, "it has none for {machine}, what this node is"),
    "denied": (
        ImageError,
        "container.registry_auth names the file with the registry's credentials",
    ),
    "missing": (ImageError, "is the digest right, and was the image pushed?"),
    "down": (ImageError, "is the registry up, and can this node reach it?"),
    "full": (CapacityError, "free space where container.store is"),
    "plain": (ImageError, "it speaks no TLS; container.registry_insecure allows it"),
}
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # uname(2) -> OCI (GOARCH)
HINT = "name it by its digest: registry.example/group/name@sha256:... (podman images --digests)"


class Image(NamedTuple):
    """A reference, taken apart; `digest` is "sha256:" and 64 hexadecimal digits."""

    name: str  # with the registry, without tag and digest; of a layout, its path
    digest: str
    is_layout: bool

    def __str__(self) -> str:
        return f"{LAYOUT if self.is_layout else ''}{self.name}@{self.digest}"


def parse(text: str) -> Image:
    """The image that `text` names.

    Raises:
        UsageError: no digest, or a name that no registry has.
    """
    name, at, digest = text.rpartition("@")
    if len(text) > REFERENCE_MAX:
        raise UsageError(f"image name is too long ({len(text)}), at most {REFERENCE_MAX}")
    if not at or not _DIGEST.match(digest):
        raise UsageError(f"image {text!r} is not named by a digest", hint=HINT)
    if name.startswith(LAYOUT):
        path = name.removeprefix(LAYOUT)
        if not _PATH.match(path) or ".." in path.split("/"):
            raise UsageError(f"image {text!r}: {path!r} is no absolute path", hint=HINT)
        return Image(path, digest, True)
    head, slash, last = name.rpartition("/")
    base, colon, tag = last.partition(":")
    if colon and not _TAG.match(tag):
        raise UsageError(f"image {text!r}: {tag!r} is no tag", hint=HINT)
    if not _NAME.match(head + slash + base) or not base:
        raise UsageError(f"image {text!r}: {name!r} is no name of an image", hint=HINT)
    return Image(head + slash + base, digest, False)


def architecture(machine: str) -> str:
    """What uname(2) calls a machine, as images have it."""
    return ARCHITECTURES.get(machine, machine)


def cause(lines: Sequence[str]) -> str:
    """Why a tool could not have an image, in a word of CAUSES; "" where it says what none knows."""
    low = " ".join(lines).lower()
    return next((name for name, words in CAUSES.items() if any(word in low for word in words)), "")


def refusal(what: str, machine: str, status: int, lines: Sequence[str]) -> RfaasError:
    """The error where a command could not fetch an image, from what it said.

    Args:
        what: for the message: "skopeo cannot fetch image NAME".
        machine: what this node is, uname(2).
    """
    said = next((line for line in reversed(lines) if line), f"it ended with status {status}")
    for mark in ('msg="', "Error: "):
        said = said.partition(mark)[2].rstrip('"') or said
    kind, hint = _REFUSALS.get(cause(lines), (ImageError, ""))
    return kind(f"{what}: {said[:1500]}", hint=hint.format(machine=machine))
