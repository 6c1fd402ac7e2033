"""Names of container images, as leases ask for them: always by digest.  No I/O.

    registry.example:5000/group/name@sha256:DIGEST     fetched from a registry
    group/name:tag@sha256:DIGEST                       the tag is for people
    oci:/path/to/layout@sha256:DIGEST                  a folder in the OCI image layout, on the node

A tag may mean another image tomorrow; a digest cannot, and is checked.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from rfaas.errors import UsageError

REFERENCE_MAX = 512
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
# What registries allow (OCI Distribution Specification, "pulling manifests"), with an optional
# host; nothing of it can be taken for a flag of a command.
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]*(:[0-9]+)?(/[a-z0-9][a-z0-9._-]*)*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")
_PATH = re.compile(r"/[A-Za-z0-9._/-]+\Z")
LAYOUT = "oci:"
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
