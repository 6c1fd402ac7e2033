"""Levels of isolation: which one a lease gets, what it lacks, and what is refused instead."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from rfaas.errors import CapacityError
from tests.functions.build import build_library
from tests.harness.hostile import groups_left, groups_of
from tests.harness.processes import descendants, until, workers_of
from tests.harness.site import Site

needs_unshare = pytest.mark.skipif(
    shutil.which("unshare") is None or os.geteuid() != 0,
    reason="the test makes namespaces as root, by unshare of util-linux",
)
# In a root of its own, nobody makes user namespaces: user_namespaces(7), EPERM.
NO_USER_NAMESPACES = (
    *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
    'mkdir -p "$0" && mount --rbind / "$0" && exec chroot "$0" "$@"',
)


def forbidden(tmp_path: Path) -> tuple[str, ...]:
    """A command that runs another one where user namespaces are forbidden."""
    root = str(tmp_path / "root")
    return (*NO_USER_NAMESPACES, root)


def test_the_default_is_a_sandbox(site: Site, shipped: Path) -> None:
    site.set(lease__isolation="default")
    with site.private_session() as session:
        with session.lease(library=shipped) as lease:
            assert lease.isolation == "sandbox"
            assert bytes(lease.call("echo", b"x")) == b"x"
        with session.lease(library=shipped, isolation="none") as lease:
            assert (lease.isolation, lease.lacks) == ("none", ())


@pytest.mark.parametrize("level", ["none", "process", "sandbox", "bubblewrap"])
def test_what_was_obtained_is_told(site: Site, shipped: Path, level: str) -> None:
    """In the lease, in the node's status and in its log.  What is missing: test_lacks.py."""
    if level == "bubblewrap" and shutil.which("bwrap") is None:
        pytest.skip("bwrap is missing: apt-get install bubblewrap")
    executor = site.start("executor", "--resource-manager", "none")
    with site.session(client__executor=site.address("executor")) as session:
        offered = str(session.status().facts["isolation"])
        with session.lease(library=shipped, isolation=level) as lease:
            assert lease.isolation == level
            without = f" (without {', '.join(lease.lacks)})" if lease.lacks else ""
            assert f"{level}{without}" in re.split(r", (?![^(]*\))", offered)
            words = f", isolation {level}{without}, serves 1 lanes"
            until(lambda: words in executor.stderr, "a line in the log")


def test_levels_that_a_node_does_not_allow(site: Site, shipped: Path) -> None:
    site.set(sandbox__levels="sandbox")
    with site.private_session() as session:
        with pytest.raises(
            CapacityError, match="no node offers isolation 'process', offered: sand"
        ):
            session.lease(library=shipped, isolation="process")
        with session.lease(library=shipped, isolation="sandbox") as lease:
            assert lease.call("echo", b"x") == b"x"


def test_a_level_that_does_not_exist(site: Site) -> None:
    site.set(sandbox__levels="process chastity")
    child = site.start_unready("executor", "--resource-manager", "none")
    assert child.wait() == 78
    assert "sandbox.levels: no level of isolation is called 'chastity'" in child.stderr
    assert "hint: there is none, process, sandbox" in child.stderr


@needs_unshare
class TestWithoutUserNamespaces:
    """As where `user.max_user_namespaces` is 0."""

    def start(self, site: Site, tmp_path: Path, **settings: object) -> str:
        """What an executor says that cannot come up."""
        site.set(**settings)
        child = site.start_unready(
            "executor", "--resource-manager", "none", prefix=forbidden(tmp_path)
        )
        assert child.wait() == 78
        return child.stderr

    def test_a_level_that_is_demanded_is_refused(self, site: Site, tmp_path: Path) -> None:
        text = self.start(site, tmp_path, sandbox__levels="sandbox")
        assert "isolation sandbox cannot be had on this node: user: unshare: EPERM" in text
        assert "hint: allow it: sysctl user.max_user_namespaces" in text

    def test_what_may_be_lacking_is_ignored_where_all_is_required(
        self, site: Site, tmp_path: Path
    ) -> None:
        degrade = "user cgroup landlock time"
        settings = {"sandbox__degrade": degrade, "sandbox__require": "true"}
        text = self.start(site, tmp_path, sandbox__levels="sandbox", **settings)
        assert "isolation sandbox cannot be had on this node: user" in text

    def test_a_lease_is_refused(self, site: Site, tmp_path: Path, shipped: Path) -> None:
        site.start_unready("executor", "--resource-manager", "none", prefix=forbidden(tmp_path))
        line = site.children[-1].lines.next()
        assert line is not None
        assert "ready" in line
        with (
            site.session(client__executor=site.address("executor")) as session,
            pytest.raises(CapacityError, match="no node offers isolation 'sandbox'") as refused,
        ):
            session.lease(library=shipped, isolation="sandbox")
        assert "bubblewrap" not in refused.value.text  # it takes them, too

    def test_a_private_executor_says_so_and_takes_a_process(
        self, site: Site, tmp_path: Path, shipped: Path
    ) -> None:
        site.set(lease__isolation="default")
        child = site.run_under(forbidden(tmp_path), "call", shipped, "echo", __file__)
        assert child.returncode == 0
        assert child.stdout == Path(__file__).read_bytes()
        assert b"this machine cannot hold a sandbox (user: unshare: EPERM" in child.stderr
        assert b"your functions run as processes of yours" in child.stderr

    def test_a_part_that_may_be_missing(self, site: Site, tmp_path: Path, libraries: Path) -> None:
        """Root can do without: the worker becomes nobody, and loses all capabilities."""
        attacks = build_library(libraries, "attacks")
        site.set(lease__isolation="sandbox", sandbox__degrade="user cgroup landlock time")
        done = site.run_under(forbidden(tmp_path), "call", attacks, "nest_namespaces")
        assert done.returncode == 0, done.stderr
        assert b"unshare user: EPERM" in done.stdout
        assert b"mount: EPERM" in done.stdout


@pytest.mark.parametrize("limit", ["-n 64", "-l 8192"])
def test_low_limits(site: Site, shipped: Path, limit: str) -> None:
    """Of open files, and of locked memory in KiB: neither keeps a sandbox from working."""
    site.set(lease__isolation="sandbox")
    low = ("sh", "-c", f'ulimit {limit} && exec "$0" "$@"')
    done = site.run_under(low, "call", shipped, "echo", __file__)
    assert done.returncode == 0, done.stderr
    assert done.stdout == Path(__file__).read_bytes()


def waiting_workers(executor: int) -> set[int]:
    """Workers of a node without leases, once none of a former lease is left."""
    found = set(workers_of(executor))
    return found if len(found) == 1 else set()


def test_a_worker_that_waited(site: Site, counter: Path) -> None:
    """It serves a lease, dies with it, and another one waits; all of them end with the node."""
    site.set(sandbox__pool=1, lease__isolation="sandbox")
    executor = site.start("executor", "--resource-manager", "none")

    def waiting() -> set[int]:
        found = set(descendants(executor.pid))
        return found if len(found) == 3 else set()  # zygote, init, worker

    before = until(waiting, "a worker that waits")
    with site.session(client__executor=site.address("executor")) as session:
        with session.lease(library=counter, memory="64MiB") as lease:
            assert int.from_bytes(lease.call("count"), "little") == 1
            served = until(lambda: set(descendants(executor.pid)) - before, "the next one")
            assert before <= set(descendants(executor.pid))
            assert len(served) <= 2
        again = until(lambda: waiting() - before, "the end of the lease's worker")
        with session.lease(library=counter) as lease:
            assert int.from_bytes(lease.call("count"), "little") == 1
            assert again <= set(descendants(executor.pid))


@pytest.mark.parametrize("level", ["none", "process"])
def test_a_level_that_was_wanted_waits(site: Site, counter: Path, level: str) -> None:
    """Once a lease has had it: the next one is served by a process that was there before."""
    site.set(sandbox__pool=1, sandbox__levels=level, lease__isolation=level)
    executor = site.start("executor", "--resource-manager", "none")
    with site.session(client__executor=site.address("executor")) as session:
        with session.lease(library=counter, memory="64MiB") as lease:
            assert int.from_bytes(lease.call("count"), "little") == 1
        waits = until(lambda: waiting_workers(executor.pid), "a worker that waits")
        with session.lease(library=counter, memory="64MiB") as lease:
            assert int.from_bytes(lease.call("count"), "little") == 1
            assert waits <= set(workers_of(executor.pid))
            assert lease.isolation == level


def test_a_level_that_nobody_wants_waits_no_more(site: Site, counter: Path) -> None:
    site.set(sandbox__pool=1, sandbox__pool_age_s=1, lease__isolation="process")
    site.set(sandbox__levels="process")
    executor = site.start("executor", "--resource-manager", "none")
    with site.session(client__executor=site.address("executor")) as session:
        session.lease(library=counter).close()
        until(lambda: waiting_workers(executor.pid), "a worker that waits")
        until(lambda: not workers_of(executor.pid), "the end of those that wait")


def test_workers_that_waited_too_long_are_replaced(site: Site) -> None:
    site.set(sandbox__pool=1, sandbox__pool_age_s=1)
    executor = site.start("executor", "--resource-manager", "none")
    first = until(lambda: set(descendants(executor.pid)), "a worker that waits")
    until(lambda: len(set(descendants(executor.pid)) & first) == 1, "its replacement")


def test_a_worker_that_dies_while_it_waits_is_replaced(site: Site, counter: Path) -> None:
    site.set(sandbox__pool=1, lease__isolation="sandbox")
    executor = site.start("executor", "--resource-manager", "none")
    waits = until(lambda: sorted(descendants(executor.pid))[2:], "a worker that waits")
    os.kill(waits[-1], 9)
    with (
        site.session(client__executor=site.address("executor")) as session,
        session.lease(library=counter) as lease,
    ):
        assert int.from_bytes(lease.call("count"), "little") == 1


def test_groups_go_with_their_workers(site: Site, counter: Path) -> None:
    site.set(lease__isolation="sandbox")
    executor = site.start("executor", "--resource-manager", "none")
    (zygote,) = descendants(executor.pid)
    its = groups_of(zygote)
    with site.session(client__executor=site.address("executor")) as session:
        with session.lease(library=counter) as lease:
            if "cgroup" in lease.lacks:
                pytest.skip("no control group can be written here")
            groups = groups_left(its)  # one of them is ready for the next lease
            its_own = {path for path in groups if Path(path, "cgroup.procs").read_text()}
            assert its_own
        until(lambda: its_own.isdisjoint(groups_left(its)), "the end of the lease's groups")
