"""The tables of the SQLite store, and how a file of an older rfaas becomes one of this.

A file says its version in `PRAGMA user_version`.  `MIGRATIONS[n]` turns version n into
n + 1; opening a store runs those that its file lacks, all in one transaction, so a
crash or a full disk in between leaves the older version whole.

To change the schema, add an entry at the end.  One that was released is never edited:
files of that version exist.  A column that is added has a default, for the rows that are
there.  tests/store/test_schema.py keeps a file of each version and opens it.
"""

from __future__ import annotations

from rfaas.core.lease import LIVE

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (  # 1: nodes, leases, the fence
        """
        CREATE TABLE nodes (
            node TEXT PRIMARY KEY,
            address TEXT NOT NULL,
            incarnation TEXT NOT NULL,
            cores INTEGER NOT NULL,
            memory_bytes INTEGER NOT NULL,
            isolation TEXT NOT NULL, -- a JSON list
            key BLOB NOT NULL
        )
        """,
        """
        CREATE TABLE leases (
            lease TEXT PRIMARY KEY,
            client TEXT NOT NULL,
            node TEXT NOT NULL,
            cores INTEGER NOT NULL,
            memory_bytes INTEGER NOT NULL,
            isolation TEXT NOT NULL,
            duration_s REAL NOT NULL,
            granted_at_s REAL NOT NULL, -- seconds since 1970
            ends_at_s REAL NOT NULL,
            fence INTEGER NOT NULL,
            state TEXT NOT NULL,
            allocated_ns INTEGER NOT NULL,
            polling_ns INTEGER NOT NULL,
            executing_ns INTEGER NOT NULL,
            calls INTEGER NOT NULL,
            failed INTEGER NOT NULL
        )
        """,
        f"CREATE INDEX leases_ended ON leases (ends_at_s) WHERE state <> '{LIVE}'",
        "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
        "INSERT INTO counters VALUES ('fence', 0)",
    ),
    (  # 2: bundles, accounts, notice before the end, drained nodes
        "ALTER TABLE leases ADD COLUMN bundle TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE leases ADD COLUMN account TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE leases ADD COLUMN ending TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE nodes ADD COLUMN draining INTEGER NOT NULL DEFAULT 0",
    ),
    (  # 3: bills, which outlive their leases; nodes that may not join
        """
        CREATE TABLE bills (
            day TEXT NOT NULL, -- 2026-11-23, UTC
            lease TEXT NOT NULL,
            client TEXT NOT NULL,
            node TEXT NOT NULL,
            allocated_ns INTEGER NOT NULL,
            polling_ns INTEGER NOT NULL,
            executing_ns INTEGER NOT NULL,
            calls INTEGER NOT NULL,
            failed INTEGER NOT NULL,
            PRIMARY KEY (day, lease)
        ) WITHOUT ROWID
        """,
        "CREATE TABLE barred (node TEXT PRIMARY KEY) WITHOUT ROWID",
        "CREATE INDEX bills_client ON bills (client, day, lease)",
        """
        INSERT INTO bills
        SELECT date(granted_at_s, 'unixepoch'), lease, client, node,
            allocated_ns, polling_ns, executing_ns, calls, failed
        FROM leases
        """,
    ),
    (  # 4: GPUs
        "ALTER TABLE nodes ADD COLUMN gpus INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE leases ADD COLUMN gpus INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE leases ADD COLUMN gpu_ns INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE bills ADD COLUMN gpu_ns INTEGER NOT NULL DEFAULT 0",
    ),
    (  # 5: leases that share processors
        "ALTER TABLE nodes ADD COLUMN oversubscribe INTEGER NOT NULL DEFAULT 1",
        "ALTER TABLE leases ADD COLUMN shared INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE leases ADD COLUMN busy INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE bills ADD COLUMN busy INTEGER NOT NULL DEFAULT 0",
    ),
)
