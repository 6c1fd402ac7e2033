"""The private executor of `rfaas call` has the caller's `[container]`, however that was said."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import registry
from tests.harness.images import Layout
from tests.harness.site import Site

EX_USAGE = 2


@pytest.fixture
def image(site: Site, layout: Layout, pytestconfig: pytest.Config) -> str:
    """An image, on a site whose environment says nothing of containers."""
    registry.require(pytestconfig, "runc")
    assert not any(key.startswith("RFAAS_CONTAINER") for key in site.environ)
    return layout.reference


def call(site: Site, image: str, library: Path, *flags: str) -> tuple[int, bytes, str]:
    words = ("--isolation", "container", "--image", image, *flags)
    done = site.run("call", *words, library, "echo", "-", stdin=b"x")
    return done.returncode, done.stdout, done.stderr.decode()


def test_flags(site: Site, image: str, shipped: Path) -> None:
    flags = ["--set", f"container.store={site.path}/trees", "--set", "container.engine=runc"]
    status, out, said = call(site, image, shipped, *flags)
    assert (status, out) == (0, b"x"), said
    assert [one.name for one in (site.path / "trees").iterdir()] == [
        image.rpartition("@")[2].replace(":", "-")
    ]


def test_file(site: Site, image: str, shipped: Path) -> None:
    file = site.path / "rfaas.toml"
    file.write_text('[container]\nengine = "runc"\nimages = "registry.example/*"\n')
    status, out, said = call(site, image, shipped, "--config", str(file))
    assert (status, out) == (EX_USAGE, b""), said
    assert "it takes registry.example/* (container.images)" in said
