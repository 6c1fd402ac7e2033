"""Directories and sockets: where they are, and whether they are safe to use.

Apart from `config.py` because it needs none of the records, and because roles,
store and commands ask for a directory without wanting a configuration.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from rfaas.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

SOCKET_PATH_BYTES_MAX = 107  # 108 with its NUL: sun_path, unix(7)
_DIR_HINT = "set RFAAS_RUNTIME_DIR or RFAAS_STATE_DIR to a directory of your own"


def runtime_dir(environ: Mapping[str, str] = os.environ) -> str:
    """Where sockets go; not made yet, see `ensure_private_dir`.

    `$RFAAS_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/rfaas` where that is a directory we
    may write to (on a batch node it often is not), else `/tmp/rfaas-<uid>`.
    """
    if chosen := environ.get("RFAAS_RUNTIME_DIR"):
        return os.path.abspath(chosen)
    base = environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(base) and os.path.isdir(base) and os.access(base, os.W_OK | os.X_OK):
        return os.path.join(base, "rfaas")
    return f"/tmp/rfaas-{os.geteuid()}"


def state_dir(environ: Mapping[str, str] = os.environ) -> str:
    """Where the store goes; not made yet, see `ensure_private_dir`.

    `$RFAAS_STATE_DIR`, else `$XDG_STATE_HOME/rfaas`, else `~/.local/state/rfaas`, or
    the runtime directory where there is no home or it cannot be written to.
    """
    if chosen := environ.get("RFAAS_STATE_DIR"):
        return os.path.abspath(chosen)
    if os.path.isabs(base := environ.get("XDG_STATE_HOME", "")):
        return os.path.join(base, "rfaas")
    home = environ.get("HOME", "")
    wanted = there = os.path.join(home, ".local/state/rfaas")
    while there != home and not os.path.exists(there):
        there = os.path.dirname(there)
    if os.path.isabs(home) and os.access(there, os.W_OK | os.X_OK):
        return wanted
    return runtime_dir(environ)


def ensure_private_dir(path: str) -> None:
    """Make `path` a directory of mode 0700, or see that the one there is safe to use.

    Raises:
        ConfigError: it cannot be made, is a symbolic link or no directory, belongs to
            another user, or others may write to it.
    """
    path = os.path.abspath(path)  # no trailing slash: lstat(2) would follow a link
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        found = os.lstat(path)
    except OSError as error:
        raise ConfigError(
            f"cannot make directory {path}: {system_text(error)}", hint=_DIR_HINT
        ) from None
    hint = _DIR_HINT
    if stat.S_ISLNK(found.st_mode):
        fault = "it is a symbolic link"
    elif not stat.S_ISDIR(found.st_mode):
        fault = "it is not a directory"
    elif found.st_uid != os.geteuid():
        fault = f"it belongs to user {found.st_uid}, not to user {os.geteuid()}"
    elif found.st_mode & 0o022:
        fault = f"others may write to it (mode {stat.S_IMODE(found.st_mode):04o})"
        hint = f"`chmod 700 {path}`"
    else:
        return
    raise ConfigError(f"directory {path} is not safe to use: {fault}", hint=hint)


def socket_path(address: str) -> str:
    """The path in `unix:/absolute/path`; other kinds of address: `addresses.py`.

    Raises:
        ConfigError: another kind of address, not an absolute path, or one too long
            for a socket.
    """
    scheme, _, path = address.partition(":")
    if scheme != "unix" or not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise ConfigError(
            f"address is not understood ({address!r:.99}), unix:/absolute/path is allowed",
        )
    if (length := len(os.fsencode(path))) > SOCKET_PATH_BYTES_MAX:
        raise ConfigError(
            f"socket path is too long ({length} bytes), "
            f"at most {SOCKET_PATH_BYTES_MAX} are allowed: {path}",
            hint="set RFAAS_RUNTIME_DIR to a directory with a short name",
        )
    return path


def system_text(error: OSError) -> str:
    """The system's own word: ENOENT (No such file or directory)."""
    number = error.errno or 0
    return f"{errno.errorcode.get(number, number)} ({os.strerror(number)})"
