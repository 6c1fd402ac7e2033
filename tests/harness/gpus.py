"""Character devices that stand in for GPUs, and what a worker sees of them.

Two names of random(4)'s device: it can be opened, written to and asked by ioctl(2), and
nobody is hurt.  They lie in a folder that each user may enter, as /dev is.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rfaas.client import Lease

RANDOM = os.makedev(1, 8)  # of random(4)
# A /dev of its own, and in it what the machine's driver would have made.
OWN_DEV = (
    *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
    """
    mount -t tmpfs none /dev && chmod 755 /dev && umask 0 && mkdir /dev/shm || exit 1
    ln -s /proc/self/fd /dev/fd && mknod /dev/tty c 5 0 || exit 1
    for node in "null 3" "zero 5" "full 7" "random 8" "urandom 9"; do
        mknod "/dev/${node% *}" c 1 "${node#* }" || exit 1
    done
    for gpu in $0; do mknod "/dev/$gpu" c 1 8 || exit 1; done
    umask 22
    exec "$@"
    """,
)


def stand_ins(count: int) -> Iterator[list[str]]:
    """For a fixture: paths of so many devices."""
    folder = Path(tempfile.mkdtemp(prefix="rfaas-gpus-", dir="/tmp"))
    try:
        folder.chmod(0o755)
        paths = [folder / f"gpu{number}" for number in range(count)]
        for path in paths:
            make_device(path)
        yield list(map(str, paths))
    finally:
        shutil.rmtree(folder)


def make_device(path: Path) -> None:
    """A device that stands in for a GPU; skips where none can be made."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, RANDOM)
        path.chmod(0o666)
        os.close(os.open(path, os.O_RDWR))
    except OSError as error:
        pytest.skip(f"no device can be made here: {error.strerror}; it takes root, and no nodev")


def use(lease: Lease, path: str) -> str:
    """What its function meets that uses a device."""
    return bytes(lease.call("use", path.encode())).decode()


def variable(lease: Lease, name: str) -> str:
    """A variable, as its function sees it."""
    return bytes(lease.call("variable", name.encode())).decode()
