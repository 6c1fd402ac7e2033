"""How long the one-file programs take to start: medians in milliseconds, as JSON.

    .venv/bin/python packaging/bench_start.py [--rounds N] [--python PYTHON] [PROGRAM ...]
    .venv/bin/python packaging/bench_start.py --call '--executor ADDRESS --transport verbs ...'

PROGRAMs are dist/rfaas and dist/rfaas-linux-x86_64 unless named.  Everything is measured
from outside, from the exec to the end of the process where nothing else is said, and takes
turns with the bare interpreter, so that noise of the machine hits all alike:

    bare    PYTHON -I -S -c pass
    main    up to the first line of a role's main, which refuses its arguments (serve.run):
            to the first byte of what it says; beside it, as for all others, `main ended`
    help    --help
    call    a call of echo on a running executor, end to end (over shm, or as --call says)
    first   `--version` of a copy that was just made and has never run
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
LIBRARY = TREE / "functions/libfunctions.so"
TO_MAIN = ("serve", "--role", "resource-manager", "--private-fd", "0")  # refused there: EX_USAGE
EX_USAGE = 2


def run_ms(command: list[str], environ: dict[str, str], status: int = 0) -> tuple[float, float]:
    """Wall times of a command, which must end with that status: to what it says on stderr first
    (or to the end of that), and to its end."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    actions = [(os.POSIX_SPAWN_DUP2, *pair) for pair in ((null, 0), (null, 1), (writer, 2))]
    try:
        begun = time.perf_counter_ns()
        pid = os.posix_spawn(command[0], command, environ, file_actions=actions)
        os.close(writer)
        os.read(reader, 1)
        spoke_ms = (time.perf_counter_ns() - begun) / 1e6
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        took_ms = (time.perf_counter_ns() - begun) / 1e6
    finally:
        os.close(null)
        os.close(reader)
    if ended != status:
        raise SystemExit(f"bench_start: {' '.join(command)} ended with {ended}, not {status}")
    return spoke_ms, took_ms


def measure(
    programs: list[Path], python: str, environ: dict[str, str], call: list[str], rounds: int
) -> dict[str, list[float]]:
    """All times by "program what"."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            _, bare = run_ms([python, "-I", "-S", "-c", "pass"], environ)
            found.setdefault("bare", []).append(bare)
            for program in programs:
                copy = Path(folder, program.name)
                shutil.copy(program, copy)
                for what, command, status in (
                    ("main", [str(program), *TO_MAIN], EX_USAGE),
                    ("help", [str(program), "--help"], 0),
                    ("call", [str(program), "call", *call, str(LIBRARY), "echo", __file__], 0),
                    ("first", [str(copy), "--version"], 0),
                ):
                    spoke, took = run_ms(command, environ, status)
                    name = f"{program.name} {what}"
                    if what == "main":
                        found.setdefault(name, []).append(spoke)
                        name += " ended"
                    found.setdefault(name, []).append(took)
                copy.unlink()
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure how the one-file programs start.")
    parser.add_argument("--rounds", type=int, default=40, metavar="N")
    parser.add_argument("--python", default=os.path.realpath(sys.executable), metavar="PYTHON")
    parser.add_argument("--call", default="", metavar="FLAGS", help="flags of `rfaas call`")
    parser.add_argument("programs", nargs="*", type=Path, metavar="PROGRAM")
    options = parser.parse_args()
    built = (TREE / "dist/rfaas", TREE / "dist/rfaas-linux-x86_64")
    programs = [one.resolve() for one in options.programs or built if one.exists()]
    if not programs:
        raise SystemExit("bench_start: nothing to measure; build it with `make dist`")
    with tempfile.TemporaryDirectory(prefix="rfaas-b-") as folder:
        # A real interpreter: pyenv's `python3` is a script that takes 140 ms.
        environ = {"PATH": os.defpath, "HOME": folder, "RFAAS_PYTHON": options.python}
        environ["RFAAS_RUNTIME_DIR"] = folder
        server = None
        if not options.call:
            command = [str(programs[0]), "serve", "--role", "all"]
            server = subprocess.Popen(
                command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            assert server.stdout
            while not server.stdout.readline().startswith("executor "):
                pass
        try:
            call = shlex.split(options.call)
            found = measure(programs, options.python, environ, call, options.rounds)
        finally:
            if server is not None:
                server.terminate()
                server.communicate()
    shown = {
        name: {
            "min": round(min(times), 1),
            "median": round(statistics.median(times), 1),
            "p90": round(sorted(times)[len(times) * 9 // 10], 1),
        }
        for name, times in found.items()
    }
    sizes = {one.name: one.stat().st_size for one in programs}
    print(json.dumps({"ms": shown, "bytes": sizes, "rounds": options.rounds}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
