"""What functions print: with a crash, by `rfaas logs`, and on a person's terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from rfaas.client import Lease
from rfaas.errors import DeadlineExceededError, WorkerCrashedError
from rfaas.launch.output import KEPT_BYTES, WORKERS_KEPT_MAX
from tests.functions.build import build_library, build_text
from tests.harness.processes import PATIENCE_S
from tests.harness.site import RFAAS, Site

PRINTER = r"""
#include <stdio.h>
#include <stdlib.h>
#include "rfaas.h"

/* Prints its input. */
RFAAS_FUNCTION(print)
{
    fwrite(call->args, 1, call->size, stderr);
    return 0;
}

/* The same, and crashes. */
RFAAS_FUNCTION(print_and_abort)
{
    fwrite(call->args, 1, call->size, stderr);
    abort();
}

/* Fails, with its input as the text. */
RFAAS_FUNCTION(fail)
{
    return rfaas_fail(call, 7, "%.*s", (int)call->size, (const char *)call->args);
}
"""
EVIL = (
    b"\x1b]0;owned\x07\x1b[2Jwords\xc2\x9b5n\rover"  # a title, a blank screen, a question to answer
)
HARMLESS = b"\\x1b]0;owned\\x07\\x1b[2Jwords\\x9b5n\\rover"
CRASHED = b"\nrfaas worker: crashed"


@pytest.fixture(scope="session")
def printer(libraries: Path) -> Path:
    return build_text(libraries, "printer", PRINTER)


def crash(lease: Lease, words: bytes, before: bytes = b"") -> None:
    with pytest.raises(WorkerCrashedError) as crashed:
        lease.call("print_and_abort", words)
    assert crashed.value.lease == lease.id
    assert crashed.value.output.startswith(before + words)


def logs(site: Site, *arguments: str) -> tuple[bytes, list[str]]:
    """What `rfaas logs` prints, and the lines of its stderr."""
    done = site.run("logs", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr.decode().splitlines()


def test_a_worker_that_crashed_is_not_forgotten(site: Site, printer: Path) -> None:
    """Once the lease's next worker serves: the oldest first; also when the lease is over."""
    site.start("executor", "--resource-manager", "none")
    where = site.address("executor")

    def check(lease: str) -> None:
        text, heads = logs(site, lease, "--executor", where)
        assert text.startswith(b"alone\nthe first\n")
        assert text.endswith(b"the second\n")
        found = [re.fullmatch(r"rfaas: worker (\d) of the 2 last, (\d+) bytes:", h) for h in heads]
        assert [one and int(one[1]) for one in found] == [1, 2]
        assert [one and int(one[2]) for one in found] == [len(text) - 11, 11]

    with (
        site.session(client__executor=where) as session,
        session.lease(library=printer) as lease,
    ):
        lease.call("print", b"alone\n")
        assert logs(site, lease.id, "--executor", where) == (b"alone\n", [])
        crash(lease, b"the first\n", before=b"alone\n")
        lease.call("print", b"the second\n")
        check(lease.id)
    check(lease.id)


def test_the_last_few_workers(site: Site, printer: Path) -> None:
    site.start("executor", "--resource-manager", "none")
    where = site.address("executor")
    with (
        site.session(client__executor=where) as session,
        session.lease(library=printer) as lease,
    ):
        for number in range(WORKERS_KEPT_MAX + 2):
            crash(lease, b"worker %d;" % number)
        text, heads = logs(site, lease.id, "--executor", where)
        found = [int(word) for word in re.findall(rb"worker (\d+);", text)]
        assert found == list(range(2, WORKERS_KEPT_MAX + 2))
        assert len(heads) == WORKERS_KEPT_MAX


def test_endless_floods_are_bounded(site: Site, libraries: Path) -> None:
    """Of one that still floods, too: what it writes while it is read is not waited for."""
    site.start("executor", "--resource-manager", "none")
    where = site.address("executor")
    attacks = build_library(libraries, "attacks")
    with (
        site.session(client__executor=where) as session,
        session.lease(library=attacks) as lease,
    ):
        with pytest.raises(DeadlineExceededError):
            lease.call("flood_output", timeout=0.1)
        lease.submit("flood_output")
        text, heads = logs(site, lease.id, "--executor", where)
        assert set(text) <= set(b"x\n")
        assert len(heads) == 2
        assert KEPT_BYTES < len(text) <= 3 * KEPT_BYTES


def test_by_the_beginning_of_its_id(site: Site, printer: Path) -> None:
    """A resource manager knows which node it is on."""
    site.start("all")
    with site.session() as session, session.lease(library=printer) as lease:
        crash(lease, b"the first\n")
        lease.call("print", b"the second\n")
        text, heads = logs(site, lease.id[:6])
        assert (text[:10], text[-11:], len(heads)) == (b"the first\n", b"the second\n", 2)
    text, heads = logs(site, lease.id[:6])
    assert (text[:10], text[-11:], len(heads)) == (b"the first\n", b"the second\n", 2)
    wrong = "f" if lease.id[0] != "f" else "0"
    done = site.run("logs", wrong)
    assert done.returncode == 2
    assert done.stderr.decode() == (
        f"rfaas: no lease's id begins with {wrong!r}\nhint: see `rfaas leases --all --json`\n"
    )


# `rfaas call` -----------------------------------------------------------------


@pytest.mark.parametrize("manager", [True, False], ids=["manager", "executor"])
def test_a_crash_shows_the_end_of_it(site: Site, printer: Path, manager: bool) -> None:
    flags: tuple[str, ...] = ()
    if manager:
        site.start("all")
    else:
        site.start("executor", "--resource-manager", "none")
        flags = ("--executor", site.address("executor"))
    done = site.run("call", *flags, printer, "print_and_abort", "-", stdin=b"one\ntwo\n")
    assert (done.returncode, done.stdout) == (70, b"")
    *words, error, hint = done.stderr.decode().splitlines()
    assert words[:2] == ["function: one", "function: two"]
    assert all(line.startswith("function: ") for line in words)
    assert error == "rfaas: the worker died: killed by SIGABRT (Aborted)"
    found = re.fullmatch(r"hint: what it printed: rfaas (logs ([0-9a-f]{32}).*)", hint)
    assert found
    command = found[1].split()
    assert command[2:] == list(flags)
    text, _ = logs(site, *command[1:])
    assert text.startswith(b"one\ntwo\n")


def test_a_crash_shows_no_more_than_the_end(site: Site, printer: Path) -> None:
    site.start("all")
    data = b"".join(b"line %d\n" % number for number in range(5000))
    done = site.run("call", printer, "print_and_abort", "-", stdin=data)
    lines = done.stderr.decode().splitlines()
    assert lines[0] == "function: ..."
    assert "function: line 4999" in lines
    assert len(done.stderr) < 2 * 4096 + 1000


def test_a_private_executor_shows_it_once(site: Site, printer: Path) -> None:
    done = site.run("call", printer, "print_and_abort", "-", stdin=b"words\n")
    assert done.stderr.count(b"words\n") == 1
    assert done.stderr.endswith(b"rfaas: the worker died: killed by SIGABRT (Aborted)\n")


def test_one_that_crashes_while_it_loads(site: Site, libraries: Path) -> None:
    site.start("all")
    library = build_library(libraries, "ctor_crash")
    done = site.run("call", library, "anything")
    assert re.search(
        rb"^hint: what it printed: rfaas logs [0-9a-f]{32}$", done.stderr, re.MULTILINE
    )


# Terminals --------------------------------------------------------------------


def on_a_terminal(site: Site, *command: str | Path, stdin: bytes = b"") -> bytes:
    """What a command that has a terminal for stdout and stderr sends to it."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [RFAAS, *map(str, command)],
            env=site.environ,
            stdin=subprocess.PIPE,
            stdout=theirs,
            stderr=theirs,
        ) as child:
            os.close(theirs)
            assert child.stdin
            child.stdin.write(stdin)
            child.stdin.close()
            found = b""
            try:
                while data := os.read(ours, 65536):
                    found += data
            except OSError:  # EIO: nobody has the other end any more
                pass
            child.wait(PATIENCE_S)
    finally:
        os.close(ours)
    return found.replace(b"\r\n", b"\n")  # the terminal's own doing


def assert_harmless(seen: bytes) -> None:
    assert HARMLESS in seen
    assert not {0x1B, 0x07, 0x0D}.intersection(seen)
    assert b"\xc2\x9b" not in seen


@pytest.mark.parametrize("function", ["print_and_abort", "fail"])
@pytest.mark.parametrize("served", [True, False], ids=["served", "private"])
def test_no_function_steers_a_terminal(
    site: Site, printer: Path, function: str, served: bool
) -> None:
    """Neither by what it prints nor by what it fails with."""
    if served:
        site.start("all")
    words: Sequence[str | Path] = ("call", printer, function, "-")
    assert_harmless(on_a_terminal(site, *words, stdin=EVIL))


def test_no_result_steers_a_terminal(site: Site, shipped: Path) -> None:
    """Into a pipe it goes as it is."""
    assert_harmless(on_a_terminal(site, "call", shipped, "echo", "-", stdin=EVIL))
    assert site.run("call", shipped, "echo", "-", stdin=EVIL).stdout == EVIL


def test_no_client_steers_a_terminal(site: Site, printer: Path) -> None:
    """One that another program made calls itself what it likes; ours is kept to few characters."""
    site.start("all")
    with site.session() as session:
        client = replace(session.config.client, name=EVIL.decode())
        session.config = replace(session.config, client=client)
        with session.lease(library=printer):
            for command in (("leases",), ("leases", "--all"), ("events",)):
                assert_harmless(on_a_terminal(site, *command))
            for flags in (("--plain",), ()):
                seen = on_a_terminal(site, "top", "--once", *flags)
                assert b"\x1b]0;owned" not in seen
                assert b"\\x1b]0;owned" in seen


def test_no_log_steers_a_terminal(site: Site, printer: Path) -> None:
    """Into a file or a pipe it goes as it is."""
    site.start("all")
    with site.session() as session, session.lease(library=printer) as lease:
        lease.call("print", EVIL)
        assert_harmless(on_a_terminal(site, "logs", lease.id))
        assert logs(site, lease.id) == (EVIL, [])
