"""Machines without rdma-core, or without its drivers: this one, in mounts where they are hidden."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packaging.one_file import Copy

FOLDER = "/usr/lib/x86_64-linux-gnu"  # of Debian, which the binary is built on
LIBRARIES = ("libibverbs", "librdmacm", "libnl-", "libmlx", "libefa", "libmana")
ARCHIVE = b"rdma-core.zip"  # as PyInstaller's table of contents names what is carried

# For Copy.run_with_mounts: overlays, in which files can be removed.
NO_DRIVERS = f"""
mount -t tmpfs none /mnt
for folder in {FOLDER} /etc; do
    above=/mnt/${{folder##*/}}
    mkdir -p "$above/upper" "$above/work"
    mount -t overlay -o lowerdir=$folder,upperdir=$above/upper,workdir=$above/work none $folder
done
rm -rf /etc/libibverbs.d {FOLDER}/libibverbs
"""
NOTHING = NO_DRIVERS + "".join(f"rm -f {FOLDER}/{name}*\n" for name in LIBRARIES)
MACHINES = {"nothing": NOTHING, "no drivers": NO_DRIVERS}


def carries_rdma_core(program: Path) -> bool:
    """Whether a program brings its own: a binary that was built where there is one."""
    return ARCHIVE in program.read_bytes()


def require_carried(program: Path) -> None:
    """Skip where it was built without."""
    if not carries_rdma_core(program):
        pytest.skip(
            f"{program} was built without rdma-core: apt-get install librdmacm1 "
            "ibverbs-providers, and build it again (make dist-binary)"
        )


def copy_in_a_folder_with_a_colon(program: Path, folder: Path) -> Copy:
    """A copy that unpacks where lists of paths, such as rdma-core's own variables, would break."""
    copy = Copy(program, folder, python="")
    temporary = folder / "tmp: of the test"
    temporary.mkdir()
    copy.environ["TMPDIR"] = str(temporary)
    return copy
