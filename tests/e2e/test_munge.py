"""`control.auth = "munge"`, with a real munged and a key of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from rfaas.config import ControlConfig
from rfaas.control import link as links
from rfaas.control import munge
from rfaas.errors import CapacityError, NotPermittedError, UnavailableError
from rfaas.proto import messages as m
from tests.harness.processes import until
from tests.harness.site import Site

HELLO = m.Hello(version=m.PROTOCOL_VERSION, role="client", name="x@elsewhere:1")


@pytest.fixture
def munged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a daemon."""
    if shutil.which("munged") is None:
        pytest.skip("needs munged: apt-get install munge")
    place = Path("/run") if os.geteuid() == 0 else tmp_path_factory.getbasetemp()
    path = place / f"rfaas-munge-{os.getpid()}"  # munged wants no folder that others may write
    path.mkdir(mode=0o755)
    (path / "key").write_bytes(os.urandom(128))
    (path / "key").chmod(0o600)
    files = [f"--{name}-file={path}/{name}" for name in ("key", "log", "pid", "seed")]
    with subprocess.Popen(
        ["munged", "--foreground", "--force", f"--socket={path}/socket", *files],
        stderr=subprocess.PIPE,
    ) as daemon:
        until(lambda: (path / "socket").exists() or daemon.poll() is not None, "munged is up")
        yield path / "socket"
        daemon.terminate()
    shutil.rmtree(path)


@pytest.fixture
def sealed(site: Site, munged: Path) -> Site:
    """A site whose links are authenticated."""
    site.set(control__auth="munge", control__munge_socket=munged)
    return site


def test_links_by_munge(sealed: Site, shipped: Path) -> None:
    sealed.start("resource-manager")
    sealed.start("executor")
    with sealed.session() as session, session.lease(library=shipped) as lease:
        assert bytes(lease.call("echo", b"known")) == b"known"


def test_who_does_not_say_who_it_is_is_refused(sealed: Site, munged: Path) -> None:
    sealed.start("resource-manager")
    with pytest.raises(NotPermittedError, match="does not say by MUNGE who it is"):
        links.connect(sealed.address(), HELLO)
    made = munge.credential(ControlConfig(auth="munge", munge_socket=str(munged)))
    forged = made[:20] + ("A" if made[20] != "A" else "B") + made[21:]
    for credential, words in ((forged, "refused"), ("x" * 4096, "refused")):
        hello = replace(HELLO, credential=credential)
        with pytest.raises(NotPermittedError, match=words):
            links.connect(sealed.address(), hello)
    good = replace(HELLO, credential=made)
    links.connect(sealed.address(), good).close()
    with pytest.raises(NotPermittedError, match=r"(?i)replayed"):
        links.connect(sealed.address(), good)


def test_quotas_go_by_user(sealed: Site, shipped: Path) -> None:
    """Whatever a client calls itself."""
    sealed.set(resource_manager__cores_per_client_max=1)
    sealed.start("resource-manager")
    sealed.start("executor")
    user = pwd.getpwuid(os.geteuid()).pw_name
    with (
        sealed.session(client__name="a@a:1") as one,
        sealed.session(client__name="b@b:1") as two,
        one.lease(library=shipped),
        pytest.raises(CapacityError, match=f"{user} holds 1"),
    ):
        two.lease(library=shipped)


def test_without_a_daemon(site: Site) -> None:
    config = ControlConfig(auth="munge", munge_socket="/nobody/there")
    try:
        munge._open(config)
    except UnavailableError:
        pytest.skip("needs libmunge: apt-get install munge")
    with pytest.raises(UnavailableError, match="MUNGE gives no credential") as refused:
        munge.credential(config)
    assert "is munged running" in refused.value.hint
