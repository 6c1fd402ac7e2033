"""Strangers' functions, at every level that promises to hold them.

Each attack runs on a node of its own (`harness/hostile.py`) beside a neighbour's
lease.  It must be contained, its client must be told what happened, and nothing of it may be
left: the fixture looks for processes, control groups, and a core that is not free.
"""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rfaas.client import Lease
from rfaas.errors import DeadlineExceededError, WorkerCrashedError
from rfaas.native import _jail
from tests.functions.build import build_library
from tests.harness import users
from tests.harness.hostile import HOLDING, SECRET, Node, made
from tests.harness.processes import descendants, until, wait_for_end
from tests.harness.site import Site

REFUSED = "(EPERM|EACCES|ENOENT|EROFS|ESRCH|ENOSYS)"
DEADLINE_S = 0.2
STARTS_S = 1.0  # a lease begins before its first call
PROCESSES = 64  # sandbox.processes, its default


OF_A_USER = "of a user"  # whom the node belongs to: he can make no control groups


@pytest.fixture(params=[f"{level}{whose}" for level in HOLDING for whose in ("", f" {OF_A_USER}")])
def node(request: pytest.FixtureRequest, site: Site, counter: Path) -> Iterator[Node]:
    """A node that grants the level."""
    level, _, whose = request.param.partition(" ")
    if not whose:
        yield from made(site, level, counter)
        return
    with users.own_site() as theirs:
        for one in made(theirs, level, counter, users.program_for_all()):
            assert one.neighbour.lacks == ("cgroup",)
            yield one


@pytest.fixture(scope="session")
def attacks(libraries: Path) -> Path:
    return build_library(libraries, "attacks")


@pytest.fixture
def lease(node: Node, attacks: Path) -> Iterator[Lease]:
    """The attacker's."""
    with node.lease(attacks) as lease:
        yield lease


def answers(lease: Lease, function: str, text: str = "") -> dict[str, str]:
    """What an attack reports, by what it tried."""
    lines = bytes(lease.call(function, text.encode())).decode().splitlines()
    return dict(line.rsplit(": ", 1) for line in lines)


def assert_refused(found: dict[str, str]) -> None:
    allowed = {what: answer for what, answer in found.items() if not re.fullmatch(REFUSED, answer)}
    assert found
    assert allowed == {}


# Crashes -----------------------------------------------------------------

CRASHES = [
    ("crash_segv", r"killed by SIGSEGV \(Segmentation fault\) at address 0x8"),
    ("crash_abort", r"killed by SIGABRT \(Aborted\)"),
    ("call_exit", "it ended by itself with exit status 3"),
    ("call_pthread_exit", r"a function called pthread_exit\(\)"),
]


@pytest.mark.parametrize(("function", "words"), CRASHES)
def test_crash(node: Node, hostile: Path, function: str, words: str) -> None:
    with node.lease(hostile) as lease:
        for _ in range(2):
            with pytest.raises(WorkerCrashedError, match=f"^the worker died: {words}$"):
                lease.call(function)
        assert lease.call("empty_output") == b""


def test_writing_past_the_shared_memory(node: Node, hostile: Path) -> None:
    with node.lease(hostile) as lease:
        with pytest.raises(WorkerCrashedError, match=r"SIGSEGV .* at address 0x[0-9a-f]+000$"):
            lease.call("write_past_output", struct.pack("<I", 65536 + 4096))
        assert lease.call("empty_output") == b""


# Those that never end ----------------------------------------------------


@pytest.mark.parametrize("function", ["ignore_term", "flood_output"])
def test_endless(lease: Lease, function: str) -> None:
    with pytest.raises(DeadlineExceededError):
        lease.call(function, timeout=DEADLINE_S)
    assert answers(lease, "be_honest")["clock"] == "done"


def test_endless_loop(node: Node, hostile: Path) -> None:
    with node.lease(hostile) as lease:
        with pytest.raises(DeadlineExceededError):
            lease.call("loop_forever", timeout=DEADLINE_S)
        assert lease.call("empty_output") == b""


def test_output_is_kept_to_its_end(node: Node, hostile: Path, attacks: Path) -> None:
    with node.lease(hostile) as lease:
        lease.call("print_noise")
        with pytest.raises(WorkerCrashedError):
            lease.call("crash_abort")
        assert lease.output.startswith(b"noise of a function on std")
        assert b"noise of a function on stderr\n" in lease.output
    with node.lease(attacks) as lease:
        with pytest.raises(DeadlineExceededError):
            lease.call("flood_output", timeout=DEADLINE_S)
        where = node.site.address("executor")
        done = node.site.run("logs", lease.id, "--executor", where)
        assert (done.returncode, done.stderr) == (0, b"")
        assert set(done.stdout) == set(b"x\n")
        assert len(done.stdout) == 65536


# Floods ------------------------------------------------------------------


def test_daemon(node: Node, lease: Lease) -> None:
    assert answers(lease, "daemonise") == {"fork": "done", "daemon": "done"}
    assert len(node.strangers()) >= 3  # init, worker, daemon
    lease.close()
    node.check()


def test_daemon_outlives_no_worker(node: Node, lease: Lease) -> None:
    answers(lease, "daemonise")
    with pytest.raises(DeadlineExceededError):
        lease.call("ignore_term", timeout=DEADLINE_S)
    node.wait_until_gone()


def test_fork_bomb(node: Node, lease: Lease) -> None:
    found = answers(lease, "fork_bomb")
    assert found["fork"] == "EAGAIN"
    assert len(node.strangers()) <= PROCESSES + 8  # with those that watch over it


def test_thread_bomb(lease: Lease) -> None:
    found = answers(lease, "thread_bomb")
    assert found["pthread_create"] == "EAGAIN"
    assert 0 < int(found["started"]) <= PROCESSES


@pytest.mark.parametrize("rings", [{}, {"slots": 2, "slot_bytes": 1 << 30}])
def test_memory_hog(node: Node, attacks: Path, rings: dict[str, int]) -> None:
    """However large its client has the rings be: they are no memory of its lease."""
    with node.lease(attacks, memory="64MiB", **rings) as lease:
        if "cgroup" in lease.lacks:  # the limit is one of each process
            found = answers(lease, "memory_hog")
            assert found["mmap"] == "ENOMEM"
            assert int(found["MiB"]) < 512
            return
        words = r"SIGKILL \(Killed\): its memory limit of 67108864 bytes is reached$"
        with pytest.raises(WorkerCrashedError, match=words):
            answers(lease, "memory_hog")


def test_disk_fill(lease: Lease, tmp_path: Path) -> None:
    assert_refused(answers(lease, "fill_disk", f"{tmp_path}/x"))
    assert list(tmp_path.iterdir()) == []


def test_descriptor_flood(lease: Lease) -> None:
    found = answers(lease, "flood_descriptors")
    assert found["dup"] == "EMFILE"
    assert int(found["had"]) < 256


def test_quotas_of_its_user(lease: Lease) -> None:
    found = answers(lease, "use_up_quotas")
    assert found["sigqueue"] == "EAGAIN"
    assert 0 < int(found["queued"]) <= 1024
    assert found["grow"] == "EPERM"
    assert found["flags"] == found["pipe"] == "done"


def test_resizing_the_shared_memory(lease: Lease) -> None:
    """There is no descriptor of it to do so with, and none to be had.  It is sealed besides: where
    one can be had, in test_process.py.  A larger mapping of it has nothing behind its end."""
    found = answers(lease, "resize_memory")
    assert (found.pop("files"), found.pop("opened")) == ("0", "0")
    assert found in ({"mremap": "done", "behind": "SIGBUS"}, {"mremap": "ENOMEM"})
    assert set(answers(lease, "be_honest").values()) == {"done"}


# Other people's processors ------------------------------------------------


def test_fleeing_its_processor(lease: Lease) -> None:
    """The neighbour's is the other one."""
    if "cgroup" in lease.lacks:
        pytest.skip("no control group holds processors here: a cpuset has to be writable")
    if min(lease.cpus) < 0:
        pytest.skip("this process may use one processor: there is no other one to flee to")
    found = answers(lease, "flee_processor", str(lease.cpus[0]))
    assert found.pop("pthread_create") == found.pop("fork") == "done"
    assert found == {"itself": "0", "thread": "0", "child": "0"}


# Its own bill ------------------------------------------------------------


@pytest.mark.parametrize("what", ["zero", "ones"])
def test_forging_its_counts(node: Node, lease: Lease, what: str) -> None:
    """Whatever it writes there: the kernel and the ring tell as well."""
    begun_s = time.monotonic()
    for _ in range(20):
        answers(lease, "be_honest")
    assert answers(lease, "forge_counts", what) == {"page": "done", "thread": "done"}
    for _ in range(20):
        answers(lease, "be_honest")
    lease.close()
    found = until(lambda: node.ended(lease.id), "the end of the lease in the log")
    assert found["calls"] == 41
    busy_s = found["executing_s"] + found["polling_s"]
    assert 0.27 <= busy_s <= time.monotonic() - begun_s + STARTS_S


# What is not to be had ---------------------------------------------------


@pytest.mark.parametrize(
    "function", ["trace", "reach_init", "use_io_uring", "nest_namespaces", "use_bpf", "connect_out"]
)
def test_refused(node: Node, lease: Lease, function: str) -> None:
    path = str(node.site.socket("executor")) if function == "connect_out" else ""
    assert_refused(answers(lease, function, path))


def test_kill(node: Node, lease: Lease) -> None:
    (neighbour,) = node.workers
    found = answers(lease, "kill_others", str(neighbour))
    assert_refused({what: found[what] for what in ("host", "group")})
    # Its parent is the init of its namespace, which no SIGKILL from inside ends, kill(2); from
    # ABI 6 on, Landlock refuses to send it.
    holds = lease.isolation == "sandbox" and "landlock" not in lease.lacks
    holds = holds and _jail.landlock_abi() >= 6
    assert found["parent"] in (("EPERM",) if holds else ("done", "EPERM"))
    assert set(answers(lease, "be_honest").values()) == {"done"}


def test_secrets(node: Node, lease: Lease, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("secret")
    shifted = "".join(chr(ord(character) + 1) for character in SECRET)
    lines = bytes(lease.call("read_secrets", f"{tmp_path}/file\n{shifted}".encode())).decode()
    found = [line.rsplit(": ", 1) for line in lines.splitlines()]
    counts = [pair for pair in found if pair[0] in ("found", "descriptors", "variables")]
    assert_refused(dict(pair for pair in found if pair not in counts))
    assert counts == [["descriptors", "0"], ["variables", "0"], ["found", "0"]]


def test_an_honest_function_has_what_it_needs(lease: Lease) -> None:
    assert set(answers(lease, "be_honest").values()) == {"done"}


def test_nothing_outlives_the_zygote(node: Node, lease: Lease) -> None:
    answers(lease, "daemonise")
    everything = set(descendants(node.pid))
    node.kill_zygote()
    wait_for_end(*everything)
