"""docs/rdma.md, followed word for word: on two hosts of the guest that have no device yet.

A block of `sh` is run line by line; what a line's comment says is kept to:

    # ... node1, # ... node2    on that host alone; without it on both, one after the other
    # ..., waits                a server: the lines after it are tried until it listens
    # ..., serves               the same, and it is interrupted at the end of the block
    # -> words                  what is printed by it has these words

`sh alone` blocks are run outside the guest.  Not run in it: `modprobe` and `apt-get`, for
its kernel has no modules and its packages are this machine's.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rfaas.addresses import parse
from rfaas.config import ControlConfig
from rfaas.proto.guard_messages import NONCE_BYTES
from rfaas.proto.link_wire import STREAM_BYTES
from tests.rdma.test_runner import KERNEL, RUN, TREE, with_guest

PAGE = (TREE / "docs/rdma.md").read_text()
BLOCKS = re.findall(r"^```(sh(?: alone)?)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
NOT_HERE = ("modprobe ", "apt-get ")
LINES_LEAST = 12
TRIES = 100
PATIENCE_S = 240

# The guest's two hosts as the page's nodes: no device, and interfaces called eth0.
AS_NODES = """\
set -eu
cd "$RFAAS_TREE"
for n in 0 1; do
    rdma link delete rxe$n
    ip -n host$n link set roce$n down
    ip -n host$n link set roce$n name eth0
    ip -n host$n address flush dev eth0
    ip -n host$n address add 10.0.0.$((n + 1))/24 dev eth0
    ip -n host$n link set eth0 up
done
mkdir /tmp/host0 /tmp/host1
"""


def steps(block: str) -> list[str]:
    """The lines of sh that follow a block in the guest."""
    script = []
    is_served = serves = False
    for line in block.splitlines():
        command, _, comment = line.partition(" # ")
        if not command.strip() or command.startswith(NOT_HERE):
            continue
        hosts = re.findall(r"\bnode([12])\b", comment) or ["1", "2"]
        for number in hosts:
            host = f"host{int(number) - 1}"
            # Both hosts' devices are in one list of names: the second host's is another one.
            there = command.replace("rxe0", "rxe1") if number == "2" else command
            word = f"ip netns exec {host} sh -euc {shlex.quote(there)}"
            script.append(f"echo {shlex.quote(f'==== {host}: {line}')}")
            if ", waits" in comment:
                script.append(f"{word} &")
                is_served = True
            elif ", serves" in comment:
                script.append(f'ip netns exec {host} {there} &\nroles="$! ${{roles-}}"')
                is_served = serves = True
            elif is_served:
                tries = f"n=0; until {word}; do n=$((n + 1)); [ $n -lt {TRIES} ]; sleep 0.1; done"
                script.append(tries)
            else:
                script.append(word)
    ends = ["for role in $roles; do kill -INT $role; wait $role; done; roles="] if serves else []
    return [*script, *ends, "wait"]


@with_guest
@pytest.mark.timeout(PATIENCE_S + 20)
def test_the_page_is_followed() -> None:
    script = AS_NODES + "\n".join(
        line for kind, block in BLOCKS if kind == "sh" for line in steps(block)
    )
    assert script.count("====") >= LINES_LEAST
    options = ["--two-hosts", "--timeout", str(PATIENCE_S), "--env", f"RFAAS_TREE={TREE}"]
    done = run(*options, "--", "sh", "-c", script)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    for part in done.stdout.split("==== ")[1:]:
        line, _, printed = part.partition("\n")
        if words := re.search(r"-> (.*)$", line):
            assert words[1] in printed, f"{line}\n{printed}"


@with_guest
@pytest.mark.timeout(PATIENCE_S + 20)
@pytest.mark.parametrize("block", [block for kind, block in BLOCKS if kind == "sh alone"])
def test_alone(block: str) -> None:
    environ = {**os.environ, "RFAAS_UML_KERNEL": str(KERNEL)}
    for line in block.splitlines():
        command, _, comment = line.partition(" # ")
        done = subprocess.run(
            ["sh", "-euc", command],
            cwd=TREE,
            env=environ,
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        if words := re.search(r"-> (.*)$", comment):
            assert words[1] in done.stdout, line


def test_what_the_page_promises_is_there() -> None:
    """Figures and files that it names."""
    assert parse("verbs:10.0.0.1:7471").scheme == "verbs"
    assert f"a link locks {STREAM_BYTES // 1024} KiB of memory at either end" in PAGE
    assert f"({NONCE_BYTES} random bytes each)" in PAGE
    assert ControlConfig(auth="key", key_file="/etc/rfaas/cluster.key").key_file in PAGE


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, RUN, *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S + 10,
        cwd=Path("/"),
    )
