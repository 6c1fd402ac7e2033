"""A role under a service manager: readiness, and lines for the journal."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest

from rfaas.launch import service
from tests.harness.processes import PATIENCE_S
from tests.harness.site import RFAAS, Site


@pytest.fixture
def manager(site: Site) -> Iterator[socket.socket]:
    """The service manager's end, as sd_notify(3) has it."""
    path = str(site.path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(PATIENCE_S)
        site.environ["NOTIFY_SOCKET"] = path
        yield sock


def told(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().split("\n")


def test_a_role_says_when_it_is_ready_and_when_it_stops(site: Site, manager: socket.socket) -> None:
    child = site.start("resource-manager")
    ready, status = told(manager)
    assert ready == "READY=1"
    assert status.startswith(f"STATUS=resource manager ready on {site.address()}")
    child.signal(signal.SIGTERM)
    assert told(manager)[0] == "STOPPING=1"
    assert child.wait() == 0


def test_an_executor_is_there_before_its_manager_is(site: Site, manager: socket.socket) -> None:
    child = site.start_unready("executor")
    waiting = f"STATUS=waiting for the resource manager at {site.address()}"
    assert told(manager) == ["READY=1", waiting]
    del site.environ["NOTIFY_SOCKET"]
    site.start("resource-manager")
    child.lines.until("executor ")
    assert "ready on" in told(manager)[1]


def test_both_roles_in_one_process_are_ready_once(site: Site, manager: socket.socket) -> None:
    child = site.start("all")
    assert "executor " in told(manager)[1]
    child.signal(signal.SIGTERM)
    assert told(manager)[0] == "STOPPING=1"


def test_workers_cannot_speak_for_their_executor() -> None:
    """They inherit the environment, out of which the socket's address was taken."""
    environ = {"NOTIFY_SOCKET": "/x", "A": "b"}
    service.Notifier.take(environ)
    assert environ == {"A": "b"}


def test_nobody_listens_any_more(site: Site, manager: socket.socket) -> None:
    os.unlink(site.environ["NOTIFY_SOCKET"])
    child = site.start("resource-manager")
    child.signal(signal.SIGTERM)
    assert child.wait() == 0
    assert "Error" not in child.stderr


def test_an_abstract_socket() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = f"rfaas-test-{os.getpid()}"
        sock.bind(f"\0{name}")
        service.Notifier(f"@{name}").ready("two\nlines")
        assert sock.recv(100) == b"READY=1\nSTATUS=two lines"


def serve_with_journal(site: Site, stream: str) -> str:
    """What an executor without a manager says on a stderr that is a pipe, until it warns."""
    reader, writer = os.pipe()
    found = os.fstat(writer)
    environ = site.environ | {
        "JOURNAL_STREAM": stream.format(dev=found.st_dev, ino=found.st_ino),
        "RFAAS_LOG_LEVEL": "info",
    }
    process = subprocess.Popen(
        [RFAAS, "serve", "--role", "executor"],
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=writer,
    )
    os.close(writer)
    text = ""
    while "trying again" not in text:
        text += os.read(reader, 4096).decode()
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0
    os.close(reader)
    return text


def test_lines_for_the_journal_have_a_priority_and_no_time(site: Site) -> None:
    text = serve_with_journal(site, "{dev}:{ino}")
    assert re.match(r"<4>rfaas\.\w+: nobody answers at ", text)


def test_lines_for_a_file_have_a_time(site: Site) -> None:
    """The journal is that of a parent: our own stderr goes elsewhere."""
    text = serve_with_journal(site, "1:{ino}")
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING rfaas\.\w+: nobody", text)


def test_every_line_of_a_message_is_marked() -> None:
    assert service.marked(3, "what\nhint: do") == "<3>what\n<3>hint: do"


def test_a_fault_at_the_start_has_a_priority_too(site: Site) -> None:
    reader, writer = os.pipe()
    found = os.fstat(writer)
    process = subprocess.Popen(
        [RFAAS, "serve", "--role", "executor", "--set", "lane.slots=0"],
        env=site.environ | {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"},
        stderr=writer,
    )
    os.close(writer)
    assert process.wait(PATIENCE_S) == 78
    with os.fdopen(reader) as pipe:
        assert pipe.read() == (
            "<3>rfaas: flag lane.slots: value is too small (0), at least 1 is required\n"
        )
