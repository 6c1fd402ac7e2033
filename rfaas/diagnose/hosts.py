"""The same question to many nodes: `rfaas devices --json` there, over ssh, srun or the like."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from rfaas.diagnose.records import Node
from rfaas.errors import UsageError

AT_ONCE_MAX = 32  # sshd drops connections beyond a few tens: MaxStartups, sshd_config(5)
HOSTS_MAX = 10_000
REMOTES = {
    "ssh": "ssh -o BatchMode=yes -o ConnectTimeout=10 {host}",
    "srun": "srun --quiet --nodes=1 --ntasks=1 --overlap --nodelist={host}",
}


def expand(text: str) -> list[str]:
    """`a,n[01-03,7]` -> a, n01, n02, n03, n7: the way Slurm writes lists of nodes.

    Raises:
        UsageError: not such a list, or longer than HOSTS_MAX.
    """
    found = []
    if text.count("[") != len(re.findall(r"\[[^\[\]]*\]", text)):
        raise UsageError(f"--hosts: a bracket is not closed: {text!r}")
    for part in re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text):
        for host in _expanded(part.strip()):
            if not re.fullmatch(r"[A-Za-z0-9_.:@][A-Za-z0-9_.:@-]*", host):
                raise UsageError(f"--hosts: not the name of a host: {host!r}")
            found.append(host)
            if len(found) > HOSTS_MAX:
                raise UsageError(f"--hosts: too many hosts, at most {HOSTS_MAX} are allowed")
    if not found:
        raise UsageError("--hosts: no host is named")
    return list(dict.fromkeys(found))


def _expanded(part: str) -> Iterator[str]:
    match = re.fullmatch(r"([^\[\]]*)\[([0-9,-]+)\](.*)", part)
    if not match:
        yield part
        return
    before, ranges, after = match.groups()
    for item in ranges.split(","):
        low, _, high = item.partition("-")
        if not low or (high and int(high) - int(low) > HOSTS_MAX):
            raise UsageError(f"--hosts: not a range of numbers: [{ranges}]")
        for number in range(int(low), int(high or low) + 1):
            for rest in _expanded(after):
                yield f"{before}{number:0{len(low)}}{rest}"


def ask(hosts: Sequence[str], remote: str, program: str, timeout_s: float) -> list[Node]:
    """The devices of each host, in the order of `hosts`; what went wrong is in `problem`.

    Args:
        hosts: their names.
        remote: the command that runs another on `{host}`, or a name of REMOTES.
        program: rfaas, as those hosts find it; "": where it is here, as on a shared file system.
        timeout_s: for each host.
    """
    words = shlex.split(REMOTES.get(remote, remote))
    if not words:
        raise UsageError("--remote: no command")
    if not any("{host}" in word for word in words):
        words.append("{host}")
    there = [*shlex.split(program or this_program()), "devices", "--json"]
    if os.path.basename(words[0]) != "srun":  # all others hand the words to a shell there
        there = [shlex.quote(word) for word in there]

    def one(host: str) -> Node:
        command = [word.replace("{host}", host) for word in words]
        return _ask_one(host, [*command, *there], timeout_s)

    with ThreadPoolExecutor(min(AT_ONCE_MAX, len(hosts))) as pool:
        return list(pool.map(one, hosts))


def this_program() -> str:
    """How this program was started, if it can be started so again; else by its name."""
    path = os.path.abspath(sys.argv[0])
    return shlex.quote(path) if os.path.isfile(path) and os.access(path, os.X_OK) else "rfaas"


def _ask_one(host: str, command: Sequence[str], timeout_s: float) -> Node:
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return Node(host=host, devices=[], problem=f"no answer within {timeout_s:g} s")
    except OSError as error:
        return Node(host=host, devices=[], problem=f"{command[0]}: {error.strerror}")
    # Whatever a login shell prints may stand before it.
    for line in reversed(done.stdout.splitlines()):
        try:
            return msgspec.structs.replace(msgspec.json.decode(line, type=Node), host=host)
        except (msgspec.DecodeError, msgspec.ValidationError):
            continue
    said = done.stderr.decode(errors="replace").strip().splitlines()
    last = f": {said[-1]}" if said else ""
    return Node(
        host=host,
        devices=[],
        problem=f"{os.path.basename(command[0])} ended with status {done.returncode}{last}",
    )
