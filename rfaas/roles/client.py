"""The client's command: call."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from msgspec.structs import replace

from rfaas import terminal
from rfaas.client import Session
from rfaas.config import Config
from rfaas.errors import (
    OutputTooLargeError,
    PayloadTooLargeError,
    UsageError,
    WorkerCrashedError,
)
from rfaas.proto import wire
from rfaas.units import format_bytes, format_ns

if TYPE_CHECKING:
    import argparse

READ_BYTES = 1 << 20  # of an input at once
LAST_BYTES_MAX = 4096  # of what a function printed, when it crashes


def run(config: Config, options: argparse.Namespace) -> int:
    """Call a function as the command line says; returns the exit status."""
    if options.repeat < 1:
        raise UsageError(f"--repeat must be at least 1, not {options.repeat}")
    data = _read_input(options.input)
    # The configured size is what a lane is made for; one call knows what it needs.
    lane = replace(config.lane, slot_bytes=max(config.lane.slot_bytes, len(data)))
    started = time.monotonic_ns()
    with Session(replace(config, lane=lane)) as session, _crash_explained(session):
        session.progress = lambda text: print(f"rfaas: {text}", file=sys.stderr, flush=True)
        connected = time.monotonic_ns()
        with session.lease(library=options.library) as lease:
            leased = time.monotonic_ns()
            try:
                result = lease.call(options.function, data)
            except OutputTooLargeError as error:  # its hint speaks to programs
                hint = error.hint.replace("lease with slot_bytes=", "call with --slot-bytes ")
                raise OutputTooLargeError(error.text, hint=hint) from None
            first = time.monotonic_ns()
            _write_output(options.output, result)
            times = []
            for _ in range(options.repeat - 1):
                before = time.monotonic_ns()
                lease.call(options.function, data)
                times.append(time.monotonic_ns() - before)
            if options.stats:
                steps = (connected - started, leased - connected, first - leased)
                print(_stats(session.where, steps, times), file=sys.stderr)
    return 0


@contextmanager
def _crash_explained(session: Session) -> Iterator[None]:
    """Show the end of what a function printed that crashes, and say how to see all of it.

    A private executor has passed it on already, and is about to be gone.
    """
    try:
        yield
    except WorkerCrashedError as error:
        if session.where == "private" or not error.lease:
            raise
        if error.output:
            sys.stderr.write(_last_words(error.output))
        raise WorkerCrashedError(
            error.text, hint=f"what it printed: rfaas logs {error.lease}{_flag(session)}"
        ) from None


def _last_words(output: bytes) -> str:
    """The end of what a function printed, each line of it marked as such."""
    text = output[-LAST_BYTES_MAX:].decode("utf-8", "backslashreplace")
    lines = text.strip("\n").split("\n")
    if len(output) > LAST_BYTES_MAX and len(lines) > 1:
        lines[0] = "..."
    marked = "".join(f"function: {line}\n" for line in lines)
    return terminal.shown(marked, sys.stderr)


def _flag(session: Session) -> str:
    """What a command line needs beside, to ask the same one."""
    client = session.config.client
    if client.executor:
        return f" --executor {client.executor}"
    return f" --resource-manager {client.resource_manager}" if client.resource_manager else ""


def _read_input(name: str | None) -> bytes:
    if name is None:
        return b""
    most = wire.SLOT_BYTES_MAX
    try:
        if name == "-":
            data = _read(sys.stdin.buffer, most)
        else:
            with open(name, "rb") as file:
                _check_size(name, os.fstat(file.fileno()).st_size)
                data = _read(file, most)
    except OSError as error:
        hint = "INPUT names a file; '-' takes standard input" if not os.path.exists(name) else ""
        raise UsageError(f"cannot read the input {name}: {error.strerror}", hint=hint) from None
    _check_size(name, len(data))
    return data


def _read(file: BinaryIO, most: int) -> bytes:
    """All of it, or one byte more than `most`: read(n) takes n bytes of memory at once."""
    parts, left = [], most + 1
    while left and (part := file.read(min(left, READ_BYTES))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _check_size(name: str, size_bytes: int) -> None:
    most = wire.SLOT_BYTES_MAX
    if size_bytes > most:  # standard input is read no further than that
        raise PayloadTooLargeError(
            f"the input {name} is too large ({size_bytes} bytes or more), "
            f"at most {most} ({format_bytes(most)}) are allowed"
        )


def _write_output(name: str | None, result: memoryview) -> None:
    if name is None:
        is_seen = sys.stdout.isatty()  # a stranger's word, too
        sys.stdout.buffer.write(
            terminal.Harmless().feed(bytes(result), last=True) if is_seen else result
        )
        sys.stdout.buffer.flush()
        return
    try:
        with open(name, "wb") as file:
            file.write(result)
    except OSError as error:
        raise UsageError(f"cannot write the output {name}: {error.strerror}") from None


def _stats(where: str, steps: tuple[int, int, int], times: Sequence[int]) -> str:
    connect, lease, first = map(format_ns, steps)
    peer = "a private executor" if where == "private" else where
    lines = [f"connected to {peer} in {connect}, leased in {lease}, first result in {first}"]
    if times:
        ranked = sorted(times)
        lines.append(
            f"{len(ranked)} more calls: min {format_ns(ranked[0])}, "
            f"median {format_ns(ranked[len(ranked) // 2])}, "
            f"p99 {format_ns(ranked[len(ranked) * 99 // 100])}, max {format_ns(ranked[-1])}"
        )
    return "\n".join(lines)
