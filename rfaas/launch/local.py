"""Starting this program again as another process: private executors.

From the one file the child is the same file again; from a tree it gets the same
interpreter and the same import path.  Either way it skips `site`, which saves up
to 25 ms.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

from rfaas.errors import SystemCallError

if TYPE_CHECKING:
    import subprocess

    from rfaas.config import Config

_BOOT = "import sys; sys.path[:] = sys.argv.pop(1).split(chr(10)); "
_MAIN = "from rfaas.cli import main; sys.exit(main())"
_PASSED_ON = ("executor", "sandbox", "container", "rdma")
_NOT_PRIVATE = {("executor", key) for key in ("address", "name", "resource_manager")}  # serve's


def program() -> str:
    """What a person types to run this program again."""
    return "./rfaas.py" if os.path.basename(sys.argv[0]) == "rfaas.py" else "rfaas"


def command(*arguments: str) -> list[str]:
    """The command line that runs this rfaas with `arguments`, in a process of its own."""
    if getattr(sys, "frozen", False):  # PyInstaller's binary; the child shares what we unpacked
        return [sys.executable, *arguments]
    if again := getattr(globals().get("__loader__"), "command", None):  # the zipapp's importer
        return [*again, *arguments]
    return python(_MAIN, *arguments)


def python(code: str, *arguments: str) -> list[str]:
    """The command line that runs `code` with this rfaas to be imported, in a process of its own."""
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = "\n".join(dict.fromkeys([here, *(os.path.abspath(entry) for entry in sys.path)]))
    return [sys.executable, "-I", "-S", "-c", _BOOT + code, path, *arguments]


class PrivateExecutor:
    """An executor that serves this process alone, and goes when its link is closed."""

    def __init__(self, config: Config) -> None:
        """Start it with the client's configuration; `link_socket` is the socket to greet it on.

        Raises:
            SystemCallError: no process can be had.
        """
        import subprocess  # a client of a running executor does without

        self.link_socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        with theirs:
            fd = theirs.fileno()
            flags = ["--role", "executor", "--private-fd", str(fd)]
            for section in _PASSED_ON:
                own = getattr(config, section)
                for key in own.__struct_fields__:
                    if (section, key) not in _NOT_PRIVATE:
                        value = getattr(own, key)
                        text = str(value).lower() if isinstance(value, bool) else value
                        flags += ["--set", f"{section}.{key}={text}"]
            try:
                self._process: subprocess.Popen[bytes] = subprocess.Popen(
                    command("serve", *flags),
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # our own output belongs to the caller
                    pass_fds=(fd,),
                    env=environ,
                    start_new_session=True,  # Ctrl-C is for the client, which then ends it
                )
            except OSError as error:
                self.link_socket.close()
                raise SystemCallError(
                    f"cannot start a private executor: {error.strerror}"
                ) from None

    def close(self, patience_s: float = 5.0) -> None:
        """Wait for it to go, after its link was closed; kill it if it does not."""
        import subprocess

        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
