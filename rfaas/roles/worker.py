"""The worker: confine itself, load a library, run its lanes, wait to be ended.

It is forked by the zygote with one link to the executor and nothing else.  Its
lanes are native threads; this, its main thread, sleeps on the link.
"""

from __future__ import annotations

import mmap
import os
import select
from typing import NamedTuple

from rfaas import sandbox
from rfaas.clock import Steps
from rfaas.control.link import Link
from rfaas.core.elf import read_functions
from rfaas.errors import PeerLostError, ProtocolError, RfaasError, SystemCallError
from rfaas.native._worker import Library, report_faults
from rfaas.proto import wire
from rfaas.proto.codec import LENGTH, decode, encode, names_page
from rfaas.proto.messages import Error
from rfaas.proto.worker_messages import (
    LanesLeft,
    LeaveLanes,
    LibraryLoaded,
    LoadLibrary,
    ServeRings,
)
from rfaas.transport.serve import Served, serve

_AREAS_PER_SLOT = 4  # of our mapping: input, guard page, output, guard page
_AREAS_DEFAULT = 65530  # vm.max_map_count, where nobody has changed it
_AREAS_BASE = 1024  # areas of memory that a worker has beside its slots; it has some 300


class Loaded(NamedTuple):
    """A library that this process has loaded, and the names of its functions."""

    library: Library
    names: list[str]


def run(link: Link) -> int:
    """Serve one library until the executor closes the link; the exit status."""
    try:
        task = link.receive(0.0)
        if task is None:  # it waits in a pool
            _rehearse()
            task = link.receive()
        if isinstance(task, ServeRings):
            from rfaas.launch import endpoint

            return endpoint.run(link, task)
        if not isinstance(task, LoadLibrary):
            raise ProtocolError(f"a worker's first message is LoadLibrary, not {task}")
        if kept := sandbox.KEPT.get(task.isolation):  # the worker is in there, this its keeper
            return kept.keep(link, task)
        library: Loaded | None = None
        while True:  # one lease after another, where the worker is kept
            try:
                library, lanes = _load(link, task, library)
            except RfaasError as error:
                link.send(Error(id=task.id, code=error.code, text=error.text, hint=error.hint))
                return 1
            task = _attend(link, lanes)
    except PeerLostError:
        pass  # ended as it should be: lanes that still call go with the process
    return 0


def _rehearse() -> None:
    """Go through a start with no lease: what a fork touches is copied first, so it is done now."""
    task = LoadLibrary(ring_bytes=0, cpus=(0,), hot_timeout_ms=0, isolation="none")
    decode(encode(task)[LENGTH.size :])
    steps = Steps()
    steps.done("")
    encode(LibraryLoaded(functions=("",), steps_ns=steps.ns))


def _attend(link: Link, lanes: Served) -> LoadLibrary:
    """Do what the lanes need until their lease is over; returns the task of the next one.

    The end is that the executor closes the link, which raises.
    """
    poller = select.poll()
    for fd in (link.fileno(), *lanes.filenos()):
        poller.register(fd, select.POLLIN)
    counts = lanes.counts()
    while True:
        for fd, _ in poller.poll(counts.wait_ms if counts else None):
            if fd == link.fileno():
                if isinstance(message := link.receive(), LeaveLanes):
                    return _leave(link, lanes, message)
            else:
                lanes.step()
        if counts:
            counts.tell()


def _leave(link: Link, lanes: Served, message: LeaveLanes) -> LoadLibrary:
    """End the lanes, and wait for another task of the same client, with the same library."""
    lanes.stop()
    link.send(LanesLeft(id=message.id))
    task = link.receive()
    if not isinstance(task, LoadLibrary):
        raise ProtocolError(f"a worker that is kept gets LoadLibrary, not {task}")
    return task


def _load(link: Link, task: LoadLibrary, kept: Loaded | None) -> tuple[Loaded, Served]:
    """Serve a task, with the library that an earlier one has loaded if there was one."""
    steps = Steps()
    fds = link.take_fds()
    library_fd, rings_fd, account_fd = fds[:3]
    turns = tuple(fds[3 : 3 + task.turns])  # the lanes' from here on
    del fds[3 : 3 + task.turns]
    for output_fd in fds[3:]:
        os.dup2(output_fd, 2)
        os.dup2(output_fd, 1)
    loaded = kept or _load_library(task, library_fd, steps)
    try:
        lanes = serve(task, loaded.library, rings_fd, account_fd, turns)
    except SystemCallError as error:
        hint = error.hint or _lanes_hint(rings_fd, len(task.cpus))
        raise SystemCallError(error.text, hint=hint) from None
    for fd in fds:
        os.close(fd)
    steps.done("start_lanes")
    start, more = 0, True
    while more:
        part, more = names_page(loaded.names, start)
        start += len(part)
        link.send(
            LibraryLoaded(
                id=task.id,
                functions=part,
                more=more,
                endpoint=lanes.endpoint,
                steps_ns=steps.ns,
            )
        )
    return loaded, lanes


def _load_library(task: LoadLibrary, library_fd: int, steps: Steps) -> Loaded:
    if not os.path.exists("/proc/self/fd"):
        raise SystemCallError(
            "this node has no /proc, through which workers load libraries from memory",
            hint="mount it there: mount -t proc proc /proc",
        )
    sandbox.level(task.isolation).enter(task.limits, task.degrade)
    steps.done("confine")
    with mmap.mmap(library_fd, 0, prot=mmap.PROT_READ) as image:
        table = read_functions(image, os.uname().machine)
    steps.done("read_functions")
    report_faults()
    library = Library(library_fd)
    library.bind(table)
    steps.done("load")
    return Loaded(library, [function.name for function in table])


def _lanes_hint(rings_fd: int, lanes: int) -> str:
    """Which limit stands in the way of so many lanes."""
    slots = int.from_bytes(os.pread(rings_fd, 4, wire.HEADER_SLOTS), "little")
    areas = lanes * slots * _AREAS_PER_SLOT
    try:
        with open("/proc/sys/vm/max_map_count") as file:
            areas_max = int(file.read())
    except OSError:  # a sandbox shows none of it
        areas_max = _AREAS_DEFAULT
    if areas + _AREAS_BASE > areas_max:
        return (
            f"{lanes} lanes of {slots} slots take {areas} areas of memory, and vm.max_map_count "
            f"is {areas_max}; lease fewer slots, or raise it on the node with sysctl(8)"
        )
    return (
        f"each of the {lanes} lanes is a thread: is the node's limit of them "
        "(`ulimit -u`, pids.max) reached, or its memory?"
    )
