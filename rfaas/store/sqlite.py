"""The store in one SQLite file: the default, for one resource manager.

The file is held exclusively, so that two managers cannot grant the same cores
out of it, and is readable by its owner alone, because it holds keys.  The log
is written ahead (WAL); with `synchronous = "normal"` what was saved survives a
crash of the process, with "full" one of the machine, at a disk flush (about
2 ms) per save.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from rfaas.core.billing import Bill
from rfaas.core.lease import LIVE
from rfaas.errors import ConfigError, RfaasError, SystemCallError
from rfaas.failpoints import reach
from rfaas.paths import ensure_private_dir
from rfaas.proto.messages import Usage
from rfaas.store import LeaseRecord, NodeRecord, Stored, schema

MEMORY = ":memory:"
APPLICATION_ID = 0x72466153  # "rFaS", tells our files from other programs'

_NODE_FIELDS = NodeRecord.__struct_fields__
_USAGE_FIELDS = Usage.__struct_fields__
_LEASE_FIELDS = tuple(name for name in LeaseRecord.__struct_fields__ if name != "usage")
_BAR, _UNBAR = "REPLACE INTO barred VALUES (?)", "DELETE FROM barred WHERE node = ?"
_BILL_FIELDS = ("day", "lease", "client", "node")
_DISK_HINT = "nothing was saved; free space on the disk, it goes on by itself"


def _upsert(table: str, fields: Sequence[str]) -> str:
    return f"REPLACE INTO {table} ({', '.join(fields)}) VALUES ({', '.join('?' * len(fields))})"


_SAVE_NODE = _upsert("nodes", _NODE_FIELDS)
_SAVE_LEASE = _upsert("leases", _LEASE_FIELDS + _USAGE_FIELDS)
_ADD_BILL = (
    f"INSERT INTO bills ({', '.join(_BILL_FIELDS + _USAGE_FIELDS)}) "
    f"VALUES ({', '.join('?' * len(_BILL_FIELDS + _USAGE_FIELDS))}) "
    "ON CONFLICT (day, lease) DO UPDATE SET "
    + ", ".join(f"{field} = {field} + excluded.{field}" for field in _USAGE_FIELDS)
)


class SqliteStore:
    """A `Store`; `path` may be ":memory:".  Usable from several threads, one at a time."""

    def __init__(self, path: str, synchronous: Literal["normal", "full"] = "normal") -> None:
        """Open or create the file.

        Raises:
            ConfigError: not a store of ours, a newer one, or others may read it.
            SystemCallError: it cannot be opened or written, or is in use.
        """
        self._path = path
        self._turn = threading.RLock()  # one transaction at a time, whichever thread begins it
        if path != MEMORY:
            _create_private(path)
        with self._explained("open"):
            self._connection = sqlite3.connect(
                path, timeout=0, isolation_level=None, check_same_thread=False
            )
        try:
            with self._explained("open"):
                self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
                self._check_ours()
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.execute(f"PRAGMA synchronous = {synchronous}")
                self._migrate()
        except BaseException:
            self._connection.close()
            raise

    def load(self) -> Stored:
        with self._explained("read"):
            nodes = self._connection.execute(
                f"SELECT {', '.join(_NODE_FIELDS)} FROM nodes ORDER BY node"
            ).fetchall()
            leases = self._connection.execute(
                f"SELECT {', '.join(_LEASE_FIELDS + _USAGE_FIELDS)} FROM leases ORDER BY fence"
            ).fetchall()
            ((fence,),) = self._connection.execute(
                "SELECT value FROM counters WHERE name = 'fence'"
            )
            barred = self._connection.execute("SELECT node FROM barred ORDER BY node").fetchall()
        names = tuple(node for (node,) in barred)
        return Stored(tuple(map(_node, nodes)), tuple(map(_lease, leases)), fence, names)

    def save(
        self,
        nodes: Sequence[NodeRecord] = (),
        leases: Sequence[LeaseRecord] = (),
        forgotten: Sequence[str] = (),
        bills: Sequence[Bill] = (),
        barred: Mapping[str, bool] = MappingProxyType({}),
    ) -> None:
        with self._explained("write"), self._transaction("store"):
            self._connection.executemany(
                "DELETE FROM nodes WHERE node = ?", ((node,) for node in forgotten)
            )
            self._connection.executemany(_SAVE_NODE, map(_node_row, nodes))
            self._connection.executemany(_SAVE_LEASE, map(_lease_row, leases))
            self._connection.executemany(_ADD_BILL, map(_bill_row, bills))
            for node, is_barred in barred.items():
                self._connection.execute(_BAR if is_barred else _UNBAR, (node,))
            self._connection.execute(
                "UPDATE counters SET value = max(value, ?) WHERE name = 'fence'",
                (max((lease.fence for lease in leases), default=0),),
            )

    def prune(self, ended_max: int) -> None:
        with self._explained("write"), self._transaction():
            self._connection.execute(
                f"""
                DELETE FROM leases WHERE lease IN (
                    SELECT lease FROM leases WHERE state <> '{LIVE}'
                    ORDER BY ends_at_s DESC LIMIT -1 OFFSET ?
                )
                """,
                (ended_max,),
            )

    def bills(
        self,
        since: str = "",
        until: str = "",
        client: str = "",
        after: tuple[str, str] = ("", ""),
        most: int = 256,
    ) -> list[Bill]:
        wanted, values = ["(day, lease) > (?, ?)", "day >= ?"], [*after, since]
        for condition, value in (("day <= ?", until), ("client = ?", client)):
            if value:
                wanted.append(condition)
                values.append(value)
        with self._explained("read"):
            rows = self._connection.execute(
                f"SELECT {', '.join(_BILL_FIELDS + _USAGE_FIELDS)} FROM bills "
                f"WHERE {' AND '.join(wanted)} ORDER BY day, lease LIMIT ?",
                (*values, most),
            ).fetchall()
        return [_bill(row) for row in rows]

    def close(self) -> None:
        with self._turn:
            self._connection.close()

    # Private

    def _check_ours(self) -> None:
        version = self._pragma("user_version")
        (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and self._pragma("application_id") != APPLICATION_ID:
            raise ConfigError(f"store {self._path} is a database of another program")
        if version > len(schema.MIGRATIONS):
            raise ConfigError(
                f"store {self._path} has schema {version}, "
                f"this rfaas knows schemas up to {len(schema.MIGRATIONS)}",
                hint="a newer rfaas wrote it; use that one, or another file",
            )

    def _migrate(self) -> None:
        with self._transaction():  # from here on the file is ours alone
            version = self._pragma("user_version")
            if version == len(schema.MIGRATIONS):
                return
            for statements in schema.MIGRATIONS[version:]:
                for statement in statements:
                    self._connection.execute(statement)
            self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._connection.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS)}")

    def _pragma(self, name: str) -> int:
        (value,) = self._connection.execute(f"PRAGMA {name}").fetchone()
        return int(value)

    @contextmanager
    def _transaction(self, failpoints: str = "") -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            reach(f"{failpoints}.begun")
            yield
            reach(f"{failpoints}.written")
            self._connection.execute("COMMIT")
            reach(f"{failpoints}.committed")
        except BaseException:
            if self._connection.in_transaction:  # a full disk may have ended it
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            with self._turn:
                yield
        except sqlite3.Error as error:
            raise _explanation(self._path, verb, error) from None


def _explanation(path: str, verb: str, error: sqlite3.Error) -> RfaasError:
    if type(error) is sqlite3.DatabaseError:  # its subclasses are other troubles
        return ConfigError(
            f"store {path} is damaged or not a database: {error}",
            hint="name another file, or move this one away",
        )
    # By text, because Python 3.10 does not tell SQLite's codes.
    text = str(error)
    if "locked" in text:
        hint = "is another resource manager using it?"
    elif "full" in text or "disk I/O" in text:
        hint = _DISK_HINT
    else:
        hint = ""
    return SystemCallError(f"cannot {verb} store {path}: {text}", hint=hint)


def _create_private(path: str) -> None:
    directory = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(directory):
        ensure_private_dir(directory)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        mode = os.fstat(descriptor).st_mode
        os.close(descriptor)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "")
        raise SystemCallError(f"cannot open store {path}: {name} ({error.strerror})") from None
    if mode & 0o077:
        raise ConfigError(
            f"store {path} holds keys and others may read it (mode {mode & 0o777:04o})",
            hint=f"`chmod 600 {path}`",
        )


def _node_row(node: NodeRecord) -> tuple[object, ...]:
    row = msgspec.structs.asdict(node)
    row["isolation"] = msgspec.json.encode(node.isolation).decode()
    row["draining"] = int(node.draining)
    return tuple(row.values())


def _node(row: tuple[object, ...]) -> NodeRecord:
    fields = dict(zip(_NODE_FIELDS, row, strict=True))
    fields["isolation"] = msgspec.json.decode(str(fields["isolation"]))
    fields["draining"] = bool(fields["draining"])
    return msgspec.convert(fields, NodeRecord)


def _lease_row(lease: LeaseRecord) -> tuple[object, ...]:
    return msgspec.structs.astuple(lease)[:-1] + msgspec.structs.astuple(lease.usage)


def _lease(row: tuple[object, ...]) -> LeaseRecord:
    fields = dict(zip(_LEASE_FIELDS, row, strict=False))
    usage = dict(zip(_USAGE_FIELDS, row[len(_LEASE_FIELDS) :], strict=True))
    return msgspec.convert(fields | {"usage": usage}, LeaseRecord)


def _bill_row(bill: Bill) -> tuple[object, ...]:
    return bill.day, bill.lease, bill.client, bill.node, *msgspec.structs.astuple(bill.usage)


def _bill(row: tuple[Any, ...]) -> Bill:
    day, lease, client, node, *used = row
    usage = Usage(**dict(zip(_USAGE_FIELDS, used, strict=True)))
    return Bill(day=day, lease=lease, client=client, node=node, usage=usage)
