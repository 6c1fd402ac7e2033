"""Files of every schema that was ever released become files of this one."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
from msgspec.structs import replace

from rfaas.core.billing import Bill
from rfaas.proto.messages import Usage
from rfaas.store import LeaseRecord, NodeRecord
from rfaas.store.schema import MIGRATIONS
from rfaas.store.sqlite import APPLICATION_ID, SqliteStore

NODE = NodeRecord(
    node="n1",
    address="unix:/run/n1",
    incarnation="1" * 32,
    cores=4,
    memory_bytes=1 << 33,
    isolation=("process",),
    key=bytes(range(32)),
)
LEASE = LeaseRecord(
    lease="a" * 32,
    client="tester",
    node="n1",
    cores=2,
    memory_bytes=1 << 30,
    isolation="process",
    duration_s=60.0,
    granted_at_s=1.8e9,
    ends_at_s=1.8e9 + 60,
    fence=3,
    usage=Usage(calls=7),
)

BILLS_SINCE, GPUS_SINCE, SHARED_SINCE = 3, 4, 5  # bills: and nodes that may not join

# What an rfaas of each version wrote, as literal as a file: never changed afterwards.
WRITTEN: dict[int, tuple[str, ...]] = {
    1: (
        """
        INSERT INTO nodes VALUES (
            'n1', 'unix:/run/n1', '11111111111111111111111111111111', 4, 8589934592,
            '["process"]', x'000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f'
        )
        """,
        """
        INSERT INTO leases VALUES (
            'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'tester', 'n1', 2, 1073741824, 'process',
            60.0, 1800000000.0, 1800000060.0, 3, 'live', 0, 0, 0, 7, 0
        )
        """,
        "UPDATE counters SET value = 3",
    ),
    2: (
        (
            "INSERT INTO nodes VALUES ('n1', 'unix:/run/n1', '11111111111111111111111111111111', 4,"
            " 8589934592, '[\"process\"]',"
            " x'000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f', 0)"
        ),
        (
            "INSERT INTO leases VALUES ('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'tester', 'n1', 2,"
            " 1073741824, 'process', 60.0, 1800000000.0, 1800000060.0, 3, 'live', 0, 0, 0, 7, 0,"
            " '', '', '')"
        ),
        "UPDATE counters SET value = 3",
    ),
    3: (
        (
            "INSERT INTO nodes VALUES ('n1', 'unix:/run/n1', '11111111111111111111111111111111', 4,"
            " 8589934592, '[\"process\"]',"
            " x'000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f', 0)"
        ),
        (
            "INSERT INTO leases VALUES ('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'tester', 'n1', 2,"
            " 1073741824, 'process', 60.0, 1800000000.0, 1800000060.0, 3, 'live', 0, 0, 0, 7, 0,"
            " '', '', '')"
        ),
        (
            "INSERT INTO bills VALUES ('2027-01-15', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'tester',"
            " 'n1', 0, 0, 0, 7, 0)"
        ),
        "INSERT INTO barred VALUES ('n9')",
        "UPDATE counters SET value = 3",
    ),
    4: (
        (
            "INSERT INTO nodes VALUES ('n1', 'unix:/run/n1', '11111111111111111111111111111111', 4,"
            " 8589934592, '[\"process\"]',"
            " x'000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f', 0, 2)"
        ),
        (
            "INSERT INTO leases VALUES ('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'tester', 'n1', 2,"
            " 1073741824, 'process', 60.0, 1800000000.0, 1800000060.0, 3, 'live', 0, 0, 0, 7, 0,"
            " '', '', '', 1, 5000)"
        ),
        (
            "INSERT INTO bills VALUES ('2027-01-15', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'tester',"
            " 'n1', 0, 0, 0, 7, 0, 5000)"
        ),
        "INSERT INTO barred VALUES ('n9')",
        "UPDATE counters SET value = 3",
    ),
    5: (
        (
            "INSERT INTO nodes VALUES ('n1', 'unix:/run/n1', '11111111111111111111111111111111', 4,"
            " 8589934592, '[\"process\"]',"
            " x'000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f', 0, 2, 3)"
        ),
        (
            "INSERT INTO leases VALUES ('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'tester', 'n1', 2,"
            " 1073741824, 'process', 60.0, 1800000000.0, 1800000060.0, 3, 'live', 0, 0, 0, 7, 0,"
            " '', '', '', 1, 5000, 1, 6)"
        ),
        (
            "INSERT INTO bills VALUES ('2027-01-15', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'tester',"
            " 'n1', 0, 0, 0, 7, 0, 5000, 6)"
        ),
        "INSERT INTO barred VALUES ('n9')",
        "UPDATE counters SET value = 3",
    ),
}


def written(path: Path, version: int) -> None:
    """A file as an rfaas of this version left it."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    with sqlite3.connect(path) as connection:
        for statements in MIGRATIONS[:version]:
            for statement in statements:
                connection.execute(statement)
        for statement in WRITTEN[version]:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()


def test_there_is_a_file_of_each_version() -> None:
    assert sorted(WRITTEN) == list(range(1, len(MIGRATIONS) + 1))


@pytest.mark.parametrize("version", sorted(WRITTEN))
def test_a_file_of_each_version_is_migrated(tmp_path: Path, version: int) -> None:
    path = tmp_path / "store.db"
    written(path, version)
    store = SqliteStore(str(path))
    stored = store.load()
    node, lease = NODE, LEASE
    if version >= GPUS_SINCE:
        node = replace(node, gpus=2)
        lease = replace(lease, gpus=1, usage=replace(lease.usage, gpu_ns=5000))
    if version >= SHARED_SINCE:
        node = replace(node, oversubscribe=3)
        lease = replace(lease, shared=1, usage=replace(lease.usage, busy=6))
    assert (stored.nodes, stored.leases, stored.fence) == ((node,), (lease,), 3)
    assert stored.barred == (("n9",) if version >= BILLS_SINCE else ())
    bill = Bill(day="2027-01-15", lease="a" * 32, client="tester", node="n1", usage=lease.usage)
    assert store.bills() == [bill]  # also what was used before there were bills
    store.save([node], [lease])
    assert store.load() == stored
    store.close()
    SqliteStore(str(path)).close()


def test_a_migrated_file_has_the_schema_of_a_new_one(tmp_path: Path) -> None:
    def schema_of(path: Path) -> list[tuple[str, ...]]:
        connection = sqlite3.connect(path)
        found = connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name")
        rows = found.fetchall()
        connection.close()
        return rows

    written(tmp_path / "old.db", 1)
    for name in ("old.db", "new.db"):
        SqliteStore(str(tmp_path / name)).close()
    assert schema_of(tmp_path / "old.db") == schema_of(tmp_path / "new.db")
