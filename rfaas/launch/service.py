"""What a role says to the service manager that started it, if one did.

Two small protocols of systemd, written out here so that nothing has to be
carried for them: readiness (sd_notify(3)), and log lines that keep their priority
in the journal (sd-daemon(3)).  Without systemd, all of it does nothing.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # to type checkers it is True
if TYPE_CHECKING:
    from collections.abc import MutableMapping

STATUS_CHARACTERS_MAX = 1000  # a datagram must hold it


class Notifier:
    """Tells the service manager how this process is; `address` "" is nobody."""

    def __init__(self, address: str) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address

    @classmethod
    def take(cls, environ: MutableMapping[str, str]) -> Notifier:
        """The one of this process; taken out of `environ`, so that no worker can speak for us."""
        return cls(environ.pop("NOTIFY_SOCKET", ""))

    def ready(self, status: str) -> None:
        """The role serves; `status` is for `systemctl status`."""
        self._tell(f"READY=1\nSTATUS={_line(status)}")

    def stopping(self) -> None:
        """The role was told to stop, and does."""
        self._tell("STOPPING=1\nSTATUS=stopping")

    def _tell(self, state: str) -> None:
        if not self._address:
            return
        import socket

        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            try:
                sock.sendto(state.encode(), self._address)
            except OSError:
                return  # nobody listens any more; that is no reason not to serve


def is_journal(fd: int, environ: MutableMapping[str, str] = os.environ) -> bool:
    """Whether a descriptor goes to the journal, which has its own clock and its own colours."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def marked(priority: int, text: str) -> str:
    """Text with a priority (syslog(3)) before each line, as the journal reads it."""
    return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))


def _line(text: str) -> str:
    return " ".join(text.split())[:STATUS_CHARACTERS_MAX]
