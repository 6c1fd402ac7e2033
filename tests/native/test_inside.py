"""What a keeper and the program inside tell each other: the same numbers on both sides."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from rfaas.sandbox import inside

TREE = Path(inside.__file__).resolve().parents[2]
PROBE = """
#include "inside.h"
#include <stddef.h>
#include <stdio.h>
int main(void) {
    printf("%u %d %d %d %d %d %d %u %u %zu %zu %zu %zu %d %d\\n", INSIDE_MAGIC, INSIDE_HELLO,
           INSIDE_LOADED, INSIDE_FAILED, INSIDE_FAILED_LIBRARY, INSIDE_ENDED, INSIDE_FILTER,
           INSIDE_LIMITS, INSIDE_TEXT_MAX, sizeof(inside_task), sizeof(inside_message),
           offsetof(inside_task, limits), offsetof(inside_message, text),
           INSIDE_DEVICES, INSIDE_NETWORK);
    return 0;
}
"""


def test_numbers(tmp_path: Path) -> None:
    source, program = tmp_path / "probe.c", tmp_path / "probe"
    source.write_text(PROBE)
    command = ["cc", "-I", str(TREE / "rfaas/native"), "-o", str(program), str(source)]
    subprocess.run(command, check=True)
    said = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert list(map(int, said.split())) == [
        inside.MAGIC,
        *(inside.HELLO, inside.LOADED, inside.FAILED, inside.FAILED_LIBRARY, inside.ENDED),
        *(inside.FILTER, inside.LIMITS, inside.TEXT_MAX),
        *(inside.TASK_BYTES, inside.MESSAGE_BYTES),
        inside.TASK_BYTES - inside.LIMITS * 16,
        inside.MESSAGE_BYTES - inside.TEXT_MAX,
        inside.DEVICES,
        inside.NETWORK,
    ]


def program(tmp_path: Path) -> Path:
    file = tmp_path / "inside"
    file.write_bytes(inside.program())
    file.chmod(0o755)
    return file


def test_started_by_a_person(tmp_path: Path) -> None:
    for words in ([], ["0"], ["/no/such/socket"], ["1", "2"]):
        run = subprocess.run(
            [program(tmp_path), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 64
        assert run.stderr == ("rfaas: this program is started by an executor, inside a container\n")


def test_keeper_that_makes_no_sense(tmp_path: Path) -> None:
    """Neither a task without descriptors nor one that is cut off is worked on."""
    for task in (bytes(inside.TASK_BYTES), b"x"):
        ours, theirs = inside.channel()
        with ours, theirs:
            fd = theirs.fileno()
            child = subprocess.Popen([program(tmp_path), str(fd)], pass_fds=(fd,))
            said = inside.receive(ours)
            assert said is not None
            assert (said.kind, said.status) == (inside.HELLO, inside.MAGIC)
            assert said.pid == child.pid
            ours.send(task)
            assert child.wait() == 0


def test_keeper_that_goes(tmp_path: Path) -> None:
    ours, theirs = inside.channel()
    with theirs:
        fd = theirs.fileno()
        child = subprocess.Popen([program(tmp_path), str(fd)], pass_fds=(fd,))
        assert inside.receive(ours) is not None
        ours.close()
    assert child.wait() == 0


def test_keeper_that_listens(tmp_path: Path) -> None:
    path = str(tmp_path / "keeper")
    with inside.listener(path) as listener:
        child = subprocess.Popen([program(tmp_path), path])
        with listener.accept()[0] as ours:
            said = inside.receive(ours)
            assert said is not None
            assert said.pid == child.pid
    assert child.wait() == 0


def test_dynamic_loader() -> None:
    assert os.path.exists(inside.interpreter(inside.program()))
