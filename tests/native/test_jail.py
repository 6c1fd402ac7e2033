"""What a worker's init does when whoever starts it dies."""

from __future__ import annotations

import os
import signal

import pytest

from rfaas.native import _jail
from rfaas.sandbox.sandbox import try_namespaces
from tests.harness.processes import wait_for_end

NAMESPACES = _jail.NEWUSER | _jail.NEWPID


@pytest.fixture(autouse=True)
def needed() -> None:
    """User namespaces, which a machine may forbid."""
    if why := try_namespaces(NAMESPACES):
        pytest.skip(f"no user and process namespaces here: {why}")


def dying_caller(say: int, give_the_byte: bool) -> None:
    """In a process of its own: start an init, say which, die."""
    ready, go = os.pipe()
    _status, tell = os.pipe()
    pid = _jail.clone(NAMESPACES, ready, go, tell, -1)
    if not pid:  # the worker
        signal.pause()
    os.write(say, b"%d\n" % pid)
    if give_the_byte:
        os.write(go, b"\n")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("give_the_byte", [False, True], ids=["before", "after"])
def test_caller_dies(give_the_byte: bool) -> None:
    """Before or just after it lets the init go on: nothing of it stays."""
    for _ in range(20):
        said, say = os.pipe()
        caller = os.fork()
        if not caller:
            try:
                dying_caller(say, give_the_byte)
            finally:
                os._exit(1)
        os.close(say)
        try:
            assert os.waitstatus_to_exitcode(os.waitpid(caller, 0)[1]) == -signal.SIGKILL
            init = int(os.read(said, 32))
            wait_for_end(init)
        finally:
            os.close(said)
