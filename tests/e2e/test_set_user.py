"""What a function leaves behind as another user is not ours to kill, and no harm to others."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.functions.build import FUNCTIONS, HERE, build_library
from tests.harness.processes import Child, is_alive, wait_for_end
from tests.harness.site import RFAAS, Site
from tests.harness.users import own_site, program_for_all


@pytest.fixture
def user_site() -> Iterator[Site]:
    """A site that belongs to another user; its clients are root."""
    with own_site() as site:
        yield site


@pytest.fixture
def program(user_site: Site) -> Path:
    """One that becomes root."""
    site = user_site
    target = site.path / "set_user"
    compile_ = ["cc", "-DPROGRAM", f"-I{FUNCTIONS}", "-o", str(target), str(HERE / "set_user.c")]
    subprocess.run(compile_, check=True)
    os.chown(target, 0, 0)
    target.chmod(0o4755)
    if os.statvfs(target).f_flag & os.ST_NOSUID:
        pytest.skip(f"{target.parent} is mounted nosuid: run the tests with another --basetemp")
    return target


@pytest.mark.parametrize("level", ["none", "process"])
def test_the_node_goes_on(
    user_site: Site, counter: Path, libraries: Path, program: Path, level: str
) -> None:
    site = user_site
    library = build_library(libraries, "set_user")
    site.set(executor__resource_manager="none", executor__cores=2, lease__isolation=level)
    executor = Child(
        [*program_for_all(), RFAAS, "serve", "--role", "executor"],
        site.environ,
        site.path / "executor.log",
    )
    site.children.append(executor)
    assert executor.lines.next() is not None, executor.stderr
    left = 0
    try:
        with (
            site.session(client__executor=site.address("executor")) as session,
            session.lease(library=counter) as neighbour,
        ):
            before = int.from_bytes(neighbour.call("count"), "little")
            with session.lease(library=library) as lease:
                left = int.from_bytes(
                    lease.call("leave_another_user", str(program).encode()), "little"
                )
                assert os.stat(f"/proc/{left}").st_uid == 0
            assert int.from_bytes(neighbour.call("count"), "little") == before + 1
            with session.lease(library=counter) as again:
                again.call("count")
        os.kill(executor.pid, signal.SIGTERM)
        assert executor.wait() == 0, executor.stderr
        assert is_alive(left)  # as sudo's would be
    finally:
        if left:
            os.kill(left, signal.SIGKILL)
            wait_for_end(left)
