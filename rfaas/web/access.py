"""Who may do what over HTTP: keys with roles, in a file that only its owner can read.

    # role   key                                  whom it was given to
    admin    4hUyR8...43 characters               operators
    read     w1Tq0D...                            prometheus

A role may do what those before it may: read looks on; operate drains nodes and
revokes leases; admin adds and removes nodes.  What is kept in memory is a hash
of each key, and a lookup by hash: how long it takes says nothing about a key.
The file is read again when it changes, so a key can be taken back at once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
from typing import NamedTuple

from rfaas.errors import ConfigError
from rfaas.paths import ensure_private_dir, system_text

ROLES = ("read", "operate", "admin")  # each may do what those before it may
KEY_CHARACTERS_MIN = 32
KEYS_MAX = 1000
FILE_BYTES_MAX = 1 << 20

log = logging.getLogger("rfaas.http")


class Holder(NamedTuple):
    """Whose key it is: what it may do, and what the file calls it."""

    role: str
    name: str

    def may(self, role: str) -> bool:
        return ROLES.index(self.role) >= ROLES.index(role)


class Keys:
    """The keys of a file."""

    def __init__(self, path: str) -> None:
        """Read it.

        Raises:
            ConfigError: it cannot be read, others may read it, or a line is wrong.
        """
        self.path = path
        self._holders: dict[bytes, Holder] = {}
        self._state: tuple[int, ...] = ()
        self._read()

    def holder(self, key: str) -> Holder | None:
        """Who holds that key, None where nobody does."""
        self._look()
        return self._holders.get(_hash(key))

    def _look(self) -> None:
        """Read the file again where it has changed; if it is wrong now, nobody has a key."""
        try:
            if _state(os.stat(self.path)) == self._state:
                return
            self._read()
        except (OSError, ConfigError) as error:
            if self._holders:
                log.error("no key is taken any more: %s", error)
            self._holders, self._state = {}, ()
        else:
            log.info("read %d keys from %s", len(self._holders), self.path)

    def _read(self) -> None:
        try:
            with open(self.path, "rb") as file:
                found = os.fstat(file.fileno())
                if found.st_mode & 0o077:
                    raise ConfigError(
                        f"{self.path} holds keys and others may read it "
                        f"(mode {found.st_mode & 0o777:04o})",
                        hint=f"`chmod 600 {self.path}`",
                    )
                data = file.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            raise ConfigError(f"cannot read {self.path}: {system_text(error)}") from None
        if len(data) > FILE_BYTES_MAX:
            raise ConfigError(f"{self.path} is too large, at most {FILE_BYTES_MAX} bytes are read")
        self._holders = _parsed(data, self.path)
        self._state = _state(found)


def create(path: str) -> None:
    """A file with one new key for each role, where there is none yet.

    Raises:
        ConfigError, SystemCallError: it cannot be written.
    """
    if os.path.lexists(path):
        return
    ensure_private_dir(os.path.dirname(path))
    text = "# Keys of rFaaS' HTTP API: role, key, a name.  Whoever has the key has the role.\n"
    text += "".join(f"{role:8} {secrets.token_urlsafe(32)} first-{role}\n" for role in ROLES)
    new = f"{path}.{os.getpid()}"
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(text)
        os.rename(new, path)
    except OSError as error:
        raise ConfigError(f"cannot make {path}: {system_text(error)}") from None


def _parsed(data: bytes, path: str) -> dict[bytes, Holder]:
    holders: dict[bytes, Holder] = {}
    for number, line in enumerate(data.decode("ascii", "replace").splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"{path}: line {number}"  # never what stands there: it may be a key
        if len(words) < 2 or words[0] not in ROLES:
            raise ConfigError(f"{where}: expected a role ({', '.join(ROLES)}), a key and a name")
        if not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", words[1]):
            raise ConfigError(f"{where}: the key has a character that no bearer token may have")
        if len(words[1]) < KEY_CHARACTERS_MIN:
            raise ConfigError(
                f"{where}: the key is too short ({len(words[1])} characters), "
                f"at least {KEY_CHARACTERS_MIN} are required",
                hint="`openssl rand -base64 32` makes one",
            )
        if len(holders) >= KEYS_MAX:
            raise ConfigError(f"{where}: too many keys, at most {KEYS_MAX} are allowed")
        holders[_hash(words[1])] = Holder(words[0], " ".join(words[2:]) or f"line {number}")
    return holders


def _state(found: os.stat_result) -> tuple[int, ...]:
    return found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
