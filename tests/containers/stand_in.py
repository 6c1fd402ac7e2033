"""Stands in for an engine that is not on this machine: records what it is asked, and does it.

What is mounted is found by its place outside, so the worker that it runs is the real one,
started as the command line says and reached as in the engine's container.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
    with open(os.environ["STAND_IN_LOG"], "a") as log:
        log.write(json.dumps([name, *words]) + "\n")
    if "inspect" in words:  # docker-image-inspect(1) --format {{.Architecture}}
        print(os.environ.get("STAND_IN_ARCHITECTURE", ""))
    if words[0] not in ("run", "exec", "--silent"):
        return
    mounts = dict(filter(None, (mount_of(index, words) for index in range(len(words)))))
    program = next(place for place in mounts if place.endswith("/inside"))
    link = next(place for place in mounts if place.endswith("/link"))
    assert words[-1] == f"{link}/keeper", words
    assert program in words or f"--entrypoint={program}" in words, words
    os.execv(mounts[program], [program, f"{mounts[link]}/keeper"])


def mount_of(index: int, words: list[str]) -> tuple[str, str] | None:
    """Place inside and outside, where a word says one."""
    word = words[index]
    if word.startswith("--mount="):
        fields = dict(one.partition("=")[::2] for one in word[len("--mount=") :].split(","))
        return fields["destination"], fields["source"]
    if index and words[index - 1] in ("--volume", "--bind"):
        source, place = word.split(":")[:2]
        return place, source
    return None


main()
