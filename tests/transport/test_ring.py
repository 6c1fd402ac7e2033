"""Rings: how they are made and sealed, and that no other memory passes for one."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from rfaas.errors import ProtocolError, RfaasError, SystemCallError, UsageError
from rfaas.native import _wire
from rfaas.native._window import Lane
from rfaas.proto import wire
from rfaas.transport import ring, shm, transport

SLOTS, SLOT_BYTES = 3, 2 * wire.PAGE_BYTES
RING_BYTES = wire.ring_bytes(SLOTS, SLOT_BYTES)


@pytest.fixture
def rings() -> Iterator[int]:
    """Two rings."""
    fd = ring.create(2, SLOTS, SLOT_BYTES, first=7)
    yield fd
    os.close(fd)


def memory(size: int, part: bytes = b"") -> int:
    """Memory that is not sealed."""
    return ring.sealed("test", [(0, part)], size, final=False)


def header(fd: int) -> bytes:
    return os.pread(fd, wire.PAGE_BYTES, 0)


class TestMade:
    def test_layout(self, rings: int) -> None:
        assert os.fstat(rings).st_size == 2 * RING_BYTES
        for offset in (0, RING_BYTES):
            page = os.pread(rings, wire.PAGE_BYTES, offset)
            words = struct.unpack_from("<4IQI", page)
            assert words == (wire.RING_MAGIC, wire.RING_VERSION, SLOTS, 4, SLOT_BYTES, 7)
            assert page[struct.calcsize("<4IQI") :] == bytes(wire.PAGE_BYTES - 28)
            assert os.pread(rings, 8192, offset + wire.PAGE_BYTES).count(0) == 8192

    def test_sealed(self, rings: int) -> None:
        assert ring.is_sealed(rings)
        for size in (0, 2 * RING_BYTES - 1, 2 * RING_BYTES + 1):
            with pytest.raises(PermissionError):
                os.ftruncate(rings, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(rings, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        assert os.pwrite(rings, b"x", 4096) == 1  # its contents do change

    def test_not_inherited(self, rings: int) -> None:
        assert not os.get_inheritable(rings)

    def test_sealed_means_all_three(self) -> None:
        fd = memory(4096)
        try:
            assert not ring.is_sealed(fd)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            assert not ring.is_sealed(fd)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
            assert ring.is_sealed(fd)
        finally:
            os.close(fd)

    def test_files_and_closed_descriptors_are_not_sealed(self, tmp_path: Path) -> None:
        with open(tmp_path / "file", "wb") as file:
            assert not ring.is_sealed(file.fileno())
            fd = file.fileno()
        assert not ring.is_sealed(fd)

    def test_too_large(self) -> None:
        with pytest.raises(SystemCallError, match="cannot make rfaas-rings of"):
            ring.create(2**20, wire.SLOTS_MAX, wire.SLOT_BYTES_MAX)

    def test_account(self) -> None:
        fd = ring.create_account(3)
        try:
            assert os.fstat(fd).st_size == 3 * wire.LINE_BYTES
            assert ring.is_sealed(fd)
        finally:
            os.close(fd)


def lane_error(fd: int, offset: int = 0) -> str:
    """What opening a lane there says; the worker's side says the same."""
    with pytest.raises(SystemCallError) as client:
        Lane(fd, offset)
    with pytest.raises(SystemCallError) as worker:
        _wire.geometry(fd, offset)
    assert client.value.text.replace("a lane", "a ring") == worker.value.text
    return client.value.text


class TestRefused:
    @pytest.mark.parametrize(
        ("field", "word"),
        [
            (wire.HEADER_MAGIC, 0),
            (wire.HEADER_MAGIC, wire.RING_MAGIC ^ 1 << 31),
            (wire.HEADER_VERSION, wire.RING_VERSION + 1),
            (wire.HEADER_SLOTS, 0),
            (wire.HEADER_SLOTS, 5),  # more than cells
            (wire.HEADER_SLOTS, wire.SLOTS_MAX + 1),
            (wire.HEADER_SLOTS, 2**32 - 1),
            (wire.HEADER_CELLS, 0),
            (wire.HEADER_CELLS, 2),
            (wire.HEADER_CELLS, 5),
            (wire.HEADER_CELLS, 2 * wire.SLOTS_MAX),
            (wire.HEADER_CELLS, 1 << 31),
            (wire.HEADER_SLOT_BYTES, 0),
            (wire.HEADER_SLOT_BYTES, SLOT_BYTES + 1),
            (wire.HEADER_SLOT_BYTES, SLOT_BYTES - 64),
            (wire.HEADER_SLOT_BYTES, 4 * SLOT_BYTES),  # past the end
            (wire.HEADER_SLOT_BYTES + 4, 1),  # the upper half: 4 GiB
            (wire.HEADER_SLOT_BYTES + 4, 2**32 - 1),
        ],
    )
    def test_corrupt_header(self, rings: int, field: int, word: int) -> None:
        Lane(rings, 0)
        os.pwrite(rings, struct.pack("<I", word), field)
        assert "geometry" in lane_error(rings)
        Lane(rings, RING_BYTES)  # the other one is as it was

    @pytest.mark.parametrize("slots", [wire.SLOTS_MAX, wire.SLOTS_MAX + 1])
    def test_slots_at_most(self, slots: int) -> None:
        fd = ring.create(1, slots, wire.PAGE_BYTES)
        try:
            if slots > wire.SLOTS_MAX:
                assert "geometry" in lane_error(fd)
            else:
                Lane(fd, 0)
        finally:
            os.close(fd)

    @pytest.mark.parametrize("slot_bytes", [wire.SLOT_BYTES_MAX, 2 * wire.SLOT_BYTES_MAX])
    def test_slot_bytes_at_most(self, slot_bytes: int) -> None:
        fd = ring.create(1, 1, slot_bytes)
        try:
            if slot_bytes > wire.SLOT_BYTES_MAX:
                assert "geometry" in lane_error(fd)
            else:
                assert Lane(fd, 0).slot_bytes == slot_bytes
        finally:
            os.close(fd)

    @pytest.mark.parametrize("size", [0, 1, 27, 256, 4096, RING_BYTES - 4096, RING_BYTES - 1])
    def test_truncated(self, rings: int, size: int) -> None:
        fd = memory(size, header(rings)[:size])
        try:
            assert "geometry" in lane_error(fd)
        finally:
            os.close(fd)

    @pytest.mark.parametrize(
        "offset",
        [1, 64, RING_BYTES - 4096, RING_BYTES + 4096, 2 * RING_BYTES, 3 * RING_BYTES, 2**62],
    )
    def test_offset_where_no_ring_is(self, rings: int, offset: int) -> None:
        assert "geometry" in lane_error(rings, offset)

    def test_offset_that_is_none(self, rings: int) -> None:
        assert os.strerror(errno.EINVAL) in lane_error(rings, 2**64 - 4096)
        with pytest.raises(OverflowError):
            Lane(rings, 2**64)

    def test_offset_within_a_page(self, rings: int) -> None:
        """A ring that would be one, but for where it begins."""
        fd = memory(2 * RING_BYTES)
        try:
            os.pwrite(fd, header(rings), 64)
            assert "geometry" in lane_error(fd, 64)
        finally:
            os.close(fd)

    def test_no_memory_at_all(self, tmp_path: Path) -> None:
        reader, writer = os.pipe()
        folder = os.open(tmp_path, os.O_RDONLY)
        try:
            assert os.strerror(errno.ESPIPE) in lane_error(reader)
            assert os.strerror(errno.EISDIR) in lane_error(folder)
        finally:
            for fd in (reader, writer, folder):
                os.close(fd)
        assert os.strerror(errno.EBADF) in lane_error(reader)

    def test_nothing_is_left_open(self, rings: int) -> None:
        """A refused ring leaves no mapping behind; nor does one that was used."""
        before = Path("/proc/self/maps").read_text().count("rfaas-rings")
        with pytest.raises(SystemCallError):
            Lane(rings, 4096)
        lane = Lane(rings, 0)
        assert Path("/proc/self/maps").read_text().count("rfaas-rings") > before
        del lane
        assert Path("/proc/self/maps").read_text().count("rfaas-rings") == before


class TestSharedMemory:
    """What the executor offers is checked before it is used."""

    def accept(self, *fds: int, lanes: int = 2, slots: int = SLOTS) -> list[Lane]:
        return shm.TRANSPORT.accept(lanes, slots, SLOT_BYTES, fds)

    def test_accepted(self, rings: int) -> None:
        assert shm.TRANSPORT.offer(rings) == (rings,)
        assert [lane.slot_bytes for lane in self.accept(rings)] == [SLOT_BYTES] * 2
        os.fstat(rings)  # the descriptor stays the caller's

    def test_count_of_descriptors(self, rings: int) -> None:
        for fds in ((), (rings, rings)):
            with pytest.raises(ProtocolError, match=str(len(fds))):
                self.accept(*fds)

    def test_unsealed(self, rings: int) -> None:
        fd = memory(2 * RING_BYTES, header(rings))
        try:
            Lane(fd, 0)
            with pytest.raises(ProtocolError, match="sealed"):
                self.accept(fd)
        finally:
            os.close(fd)

    def test_no_memory_file(self, rings: int, tmp_path: Path) -> None:
        (tmp_path / "ring").write_bytes(header(rings).ljust(2 * RING_BYTES, b"\0"))
        with open(tmp_path / "ring", "r+b") as file:
            Lane(file.fileno(), 0)
            with pytest.raises(ProtocolError, match="sealed"):
                self.accept(file.fileno())

    @pytest.mark.parametrize("slots", [-1, 0, 1, 2, 4, 16, 2**70])
    def test_other_geometry_than_announced(self, rings: int, slots: int) -> None:
        with pytest.raises(ProtocolError, match="slots"):
            self.accept(rings, slots=slots)

    @pytest.mark.parametrize("slot_bytes", [-4096, 0, 1, 4096, 2**31, 2**70])
    def test_other_slots_than_announced(self, rings: int, slot_bytes: int) -> None:
        with pytest.raises(ProtocolError, match="bytes"):
            shm.TRANSPORT.accept(1, SLOTS, slot_bytes, (rings,))

    def test_more_lanes_than_there_are(self, rings: int) -> None:
        with pytest.raises(RfaasError):
            self.accept(rings, lanes=3)


class TestProgress:
    """How far a ring has come, told from its cells alone."""

    @staticmethod
    def write(fd: int, ring_at: int, answers: int, *, asked: bool = False) -> None:
        cells = wire.cells_for(SLOTS)
        first = ring_at + wire.PAGE_BYTES + (0 if asked else cells * wire.CELL_BYTES)
        for count in range(max(1, answers - cells + 1), answers + 1):
            at = first + (count - 1) % cells * wire.CELL_BYTES
            os.pwrite(fd, struct.pack("<I", count % (1 << 32)), at)

    @pytest.mark.parametrize("known", [0, 1, 4, 5, 8])
    @pytest.mark.parametrize("more", [0, 1, 2, 3, 4, 5, 7, 8, 1000, 2**31 - 16])
    def test_any_number_of_calls(self, known: int, more: int) -> None:
        fd = ring.create(2, SLOTS, SLOT_BYTES)
        self.write(fd, RING_BYTES, known + more)
        assert ring.answered(fd, RING_BYTES, SLOTS, known) == known + more
        assert ring.asked(fd, RING_BYTES, SLOTS, known) == known
        assert ring.answered(fd, 0, SLOTS, known) == known
        self.write(fd, 0, known + more, asked=True)
        assert ring.asked(fd, 0, SLOTS, known) == known + more
        os.close(fd)

    def test_numbers_wrap(self) -> None:
        fd = ring.create(1, SLOTS, SLOT_BYTES)
        self.write(fd, 0, 2**32 + 3)
        assert ring.answered(fd, 0, SLOTS, 2**32 - 5) == 2**32 + 3
        os.close(fd)

    def test_nonsense_is_no_progress(self) -> None:
        fd = ring.create(1, SLOTS, SLOT_BYTES)
        self.write(fd, 0, 6)
        at = wire.PAGE_BYTES + 4 * wire.CELL_BYTES
        for lane in range(4):
            os.pwrite(fd, b"\xff" * 64, at + lane * wire.CELL_BYTES)
        assert ring.answered(fd, 0, SLOTS, 6) == 6
        os.close(fd)


def test_transports_by_name() -> None:
    assert transport("shm") is transport("auto") is shm.TRANSPORT
    with pytest.raises(UsageError, match="'carrier-pigeon'") as unknown:
        transport("carrier-pigeon")
    assert "shm" in unknown.value.hint
