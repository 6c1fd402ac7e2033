"""The SQLite store when things go wrong: crashes, foreign files, full disks."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from rfaas.errors import ConfigError, SystemCallError
from rfaas.store import LeaseRecord
from rfaas.store.schema import MIGRATIONS
from rfaas.store.sqlite import APPLICATION_ID, SqliteStore

ROOT = Path(__file__).parents[2]
LEASE = LeaseRecord(
    lease="a" * 32,
    client="tester",
    node="n1",
    cores=1,
    memory_bytes=1,
    isolation="process",
    duration_s=60.0,
    granted_at_s=0.0,
    ends_at_s=60.0,
    fence=1,
)

# Saves leases one after another and acknowledges each on stdout, for ever.
WRITER = """
import sys
import msgspec
from rfaas.store.sqlite import SqliteStore
from tests.store.test_sqlite import LEASE

store = SqliteStore(sys.argv[1])
number = 0
while True:
    number += 1
    store.save(leases=[msgspec.structs.replace(LEASE, lease=f"{number:032x}", fence=number)])
    print(number, flush=True)
"""

# Fills a disk of 1 MiB, and goes on when there is room again.
FILLER = """
import os
import msgspec
from rfaas.errors import SystemCallError
from rfaas.store.sqlite import SqliteStore
from tests.store.test_sqlite import LEASE

store = SqliteStore("/mnt/store.db")
ballast = os.open("/mnt/ballast", os.O_WRONLY | os.O_CREAT)
saved = 0


def save():
    global saved
    client = "x" * 200
    lease = f"{saved + 1:032x}"
    record = msgspec.structs.replace(LEASE, lease=lease, client=client, fence=saved + 1)
    store.save(leases=[record])
    saved += 1


save()
try:
    while True:
        os.write(ballast, bytes(4096))
except OSError as error:
    print(error.strerror)
try:
    while True:
        save()
except SystemCallError as error:
    print(error)
assert len(store.load().leases) == saved, "an unsaved lease is there, or a saved one is not"
try:
    store.prune(0)
except SystemCallError as error:
    print("prune:", error.text)
os.ftruncate(ballast, 0)
save()
store.close()
assert [one.fence for one in SqliteStore("/mnt/store.db").load().leases] == list(
    range(1, saved + 1)
)
print("recovered")
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "store.db")


def test_no_acknowledged_lease_is_lost_by_kill_9(path: str) -> None:
    for _ in range(3):  # each round finds what the one before left behind
        if os.path.exists(path):
            os.unlink(path)
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, path], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        with writer, writer.stdout:
            for line in writer.stdout:
                if int(line) == 50:
                    break
            writer.send_signal(signal.SIGKILL)
            rest = writer.stdout.read()  # acknowledged before it died
        acknowledged = int(rest.rstrip("\n").rpartition("\n")[2]) if rest.endswith("\n") else 50
        store = SqliteStore(path)
        stored = store.load()
        store.close()
        assert stored.fence >= acknowledged >= 50
        assert [one.fence for one in stored.leases] == list(range(1, stored.fence + 1))


def test_a_full_disk_refuses_loses_nothing_and_recovers() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a disk of 1 MiB; run the tests as root")
    script = f'mount -t tmpfs -o size=1m tmpfs /mnt && exec "{sys.executable}" -c "$FILLER"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        cwd=ROOT,
        env=os.environ | {"FILLER": FILLER},
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare failed" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"needs the right to mount, which this container lacks: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "No space left on device",
        "cannot write store /mnt/store.db: database or disk is full",
        "hint: nothing was saved; free space on the disk, it goes on by itself",
    ]
    assert lines[-1] == "recovered"


def test_the_owner_alone_can_read_it(path: str) -> None:
    store = SqliteStore(path)
    store.save(leases=[LEASE])
    for name in os.listdir(os.path.dirname(path)):
        mode = os.stat(os.path.join(os.path.dirname(path), name)).st_mode
        assert stat.S_IMODE(mode) == 0o600, name
    store.close()


def test_a_store_that_others_can_read_is_refused(path: str) -> None:
    SqliteStore(path).close()
    os.chmod(path, 0o640)
    with pytest.raises(ConfigError, match=r"holds keys and others may read it \(mode 0640\)") as no:
        SqliteStore(path)
    assert no.value.hint == f"`chmod 600 {path}`"


def test_a_store_in_use_is_refused(path: str) -> None:
    store = SqliteStore(path)
    with pytest.raises(SystemCallError, match="database is locked") as refused:
        SqliteStore(path)
    assert refused.value.hint == "is another resource manager using it?"
    store.save(leases=[LEASE])
    store.close()
    SqliteStore(path).close()


def test_a_newer_schema_is_refused(path: str) -> None:
    SqliteStore(path).close()
    newer = len(MIGRATIONS) + 1
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {newer}")
    connection.close()
    before = Path(path).read_bytes()
    with pytest.raises(ConfigError, match=rf"has schema {newer}, this rfaas knows .* {newer - 1}"):
        SqliteStore(path)
    assert Path(path).read_bytes() == before


def test_another_programs_database_is_refused(path: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE nodes (a)")
    connection.close()
    os.chmod(path, 0o600)
    before = Path(path).read_bytes()
    with pytest.raises(ConfigError, match="is a database of another program"):
        SqliteStore(path)
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize("content", [b"not a database, but long enough to be taken for one" * 30])
def test_another_file_is_refused(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)
    os.chmod(path, 0o600)
    with pytest.raises(ConfigError, match="is damaged or not a database"):
        SqliteStore(path)
    assert Path(path).read_bytes() == content


def test_a_damaged_store_is_refused(path: str) -> None:
    store = SqliteStore(path)
    store.save(
        leases=[msgspec.structs.replace(LEASE, lease=f"{n:032x}", fence=n) for n in range(99)]
    )
    store.close()
    data = bytearray(Path(path).read_bytes())
    data[4096:] = b"\x5a" * (len(data) - 4096)
    Path(path).write_bytes(data)
    with pytest.raises(ConfigError, match="is damaged or not a database"):
        SqliteStore(path).load()


def test_where_nothing_can_be_opened(tmp_path: Path) -> None:
    with pytest.raises(SystemCallError, match=r"cannot open store .*: EISDIR \(Is a directory\)"):
        SqliteStore(str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="it is not a directory"):
        SqliteStore(str(tmp_path / "file" / "store.db"))


def test_its_directory_is_made_private(tmp_path: Path) -> None:
    SqliteStore(str(tmp_path / "new" / "store.db")).close()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_an_empty_file_becomes_a_store(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    SqliteStore(path).close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    connection.close()


def test_an_older_schema_is_migrated(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStore(path)
    store.save(leases=[LEASE])
    store.close()
    column = "ALTER TABLE leases ADD COLUMN note TEXT NOT NULL DEFAULT 'none'"
    version = len(MIGRATIONS) + 1
    monkeypatch.setattr("rfaas.store.schema.MIGRATIONS", (*MIGRATIONS, (column,)))
    store = SqliteStore(path)
    assert store.load().leases == (LEASE,)
    store.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT note FROM leases").fetchone() == ("none",)
        assert connection.execute("PRAGMA user_version").fetchone() == (version,)
    connection.close()


def test_a_migration_that_fails_changes_nothing(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    SqliteStore(path).close()
    broken = (*MIGRATIONS, ("DROP TABLE leases", "SELECT nonsense FROM nowhere"))
    monkeypatch.setattr("rfaas.store.schema.MIGRATIONS", broken)
    with pytest.raises(SystemCallError, match="no such table: nowhere"):
        SqliteStore(path)
    monkeypatch.undo()
    store = SqliteStore(path)
    assert store.load().leases == ()
    store.close()


def test_full_synchronous_is_full(path: str) -> None:
    for name, level in (("normal", 1), ("full", 2)):
        store = SqliteStore(path, name)  # type: ignore[arg-type]
        assert store._pragma("synchronous") == level
        store.close()
