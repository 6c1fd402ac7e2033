"""Row 41, the torn journal: a write-ahead log that ends anywhere, as a power cut leaves it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from rfaas.store.sqlite import SqliteStore
from tests.store.test_sqlite import LEASE

SAVES = 6
WAL_HEADER, FRAME_HEADER, PAGE = 32, 24, 4096  # www.sqlite.org/fileformat2.html, section 4
STEP = 389  # between two cuts inside a frame: a prime, so that all fields of it are met


def test_row_41_torn_journal_at_every_boundary(tmp_path: Path) -> None:
    """Whatever is left of the log, the store holds the first so many saves and nothing else."""
    store = SqliteStore(str(tmp_path / "store.db"), "full")
    for number in range(1, SAVES + 1):
        record = msgspec.structs.replace(LEASE, lease=f"{number:032x}", fence=number)
        store.save(leases=[record])
    for name in ("store.db", "store.db-wal"):
        shutil.copy(tmp_path / name, tmp_path / f"cut-{name}")
    store.close()
    log = (tmp_path / "cut-store.db-wal").read_bytes()
    book = (tmp_path / "cut-store.db").read_bytes()
    found = 0
    for length in cuts(len(log)):
        (tmp_path / "torn.db").write_bytes(book)
        (tmp_path / "torn.db").chmod(0o600)
        (tmp_path / "torn.db-wal").write_bytes(log[:length])
        torn = SqliteStore(str(tmp_path / "torn.db"))
        stored = torn.load()
        torn.close()
        fences = [lease.fence for lease in stored.leases]
        assert fences == list(range(1, len(fences) + 1)), length
        assert stored.fence == len(fences), length
        assert len(fences) >= found, length  # more of the log never brings back less
        found = len(fences)
    assert found == SAVES


def test_a_journal_with_a_flipped_byte_ends_there(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "store.db"), "full")
    for number in range(1, SAVES + 1):
        record = msgspec.structs.replace(LEASE, lease=f"{number:032x}", fence=number)
        store.save(leases=[record])
    book = (tmp_path / "store.db").read_bytes()
    log = (tmp_path / "store.db-wal").read_bytes()
    store.close()
    for at in range(WAL_HEADER, len(log), FRAME_HEADER + PAGE):
        (tmp_path / "torn.db").write_bytes(book)
        (tmp_path / "torn.db").chmod(0o600)
        (tmp_path / "torn.db-wal").write_bytes(
            log[: at + 100] + bytes([log[at + 100] ^ 1]) + log[at + 101 :]
        )
        torn = SqliteStore(str(tmp_path / "torn.db"))
        fences = [lease.fence for lease in torn.load().leases]
        torn.close()
        os.unlink(tmp_path / "torn.db")
        assert fences == list(range(1, len(fences) + 1))
        assert len(fences) < SAVES


def cuts(size: int) -> Iterator[int]:
    """Where to cut: around each frame's edges and header, and all through it."""
    edges = {0, 1, WAL_HEADER - 1, WAL_HEADER, size}
    for frame in range(WAL_HEADER, size, FRAME_HEADER + PAGE):
        edges.update((frame - 1, frame, frame + 1, frame + FRAME_HEADER))
        edges.update(range(frame, min(frame + FRAME_HEADER + PAGE, size), STEP))
    return iter(sorted(cut for cut in edges if 0 <= cut <= size))
