"""Directories and sockets: where they are, and what is said about unsafe ones."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from rfaas import paths
from rfaas.errors import ConfigError


def test_runtime_dir(tmp_path: Path) -> None:
    fallback = f"/tmp/rfaas-{os.geteuid()}"
    assert paths.runtime_dir({"RFAAS_RUNTIME_DIR": "/a", "XDG_RUNTIME_DIR": "/b"}) == "/a"
    assert paths.runtime_dir({"RFAAS_RUNTIME_DIR": "a"}) == f"{os.getcwd()}/a"
    assert paths.runtime_dir({"XDG_RUNTIME_DIR": str(tmp_path)}) == f"{tmp_path}/rfaas"
    assert paths.runtime_dir({"XDG_RUNTIME_DIR": f"{tmp_path}/gone"}) == fallback
    assert paths.runtime_dir({}) == fallback


def test_state_dir(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "RFAAS_RUNTIME_DIR": "/run/x"}
    assert paths.state_dir(home | {"RFAAS_STATE_DIR": "/a", "XDG_STATE_HOME": "/b"}) == "/a"
    assert paths.state_dir(home | {"XDG_STATE_HOME": "/b"}) == "/b/rfaas"
    assert paths.state_dir(home) == f"{tmp_path}/.local/state/rfaas"
    assert paths.state_dir({"RFAAS_RUNTIME_DIR": "/run/x"}) == "/run/x"
    assert paths.state_dir(home | {"HOME": "/proc/self"}) == "/run/x"


def test_private_dir_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "a/b"
    paths.ensure_private_dir(f"{path}/")
    paths.ensure_private_dir(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def private_dir_fault(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        paths.ensure_private_dir(f"{path}/")
    return str(caught.value).replace(str(path), "DIR")


OTHER_HINT = "\nhint: set RFAAS_RUNTIME_DIR or RFAAS_STATE_DIR to a directory of your own"


def test_private_dir_that_others_may_write(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    path.mkdir()
    path.chmod(0o755)
    paths.ensure_private_dir(str(path))
    path.chmod(0o720)
    assert private_dir_fault(path) == (
        "directory DIR is not safe to use: others may write to it (mode 0720)\n"
        "hint: `chmod 700 DIR`"
    )


def test_private_dir_that_is_something_else(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    assert private_dir_fault(link) == (
        f"directory DIR is not safe to use: it is a symbolic link{OTHER_HINT}"
    )
    plain = tmp_path / "plain"
    plain.touch()
    assert private_dir_fault(plain) == (
        f"directory DIR is not safe to use: it is not a directory{OTHER_HINT}"
    )
    assert private_dir_fault(plain / "x/y") == (
        f"cannot make directory DIR: ENOTDIR (Not a directory){OTHER_HINT}"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away; run as root")
def test_private_dir_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    path.mkdir()
    os.chown(path, 65534, 65534)
    assert private_dir_fault(path) == (
        f"directory DIR is not safe to use: it belongs to user 65534, not to user 0{OTHER_HINT}"
    )


def test_socket_path_at_its_bound() -> None:
    path = "/" + "a" * (paths.SOCKET_PATH_BYTES_MAX - 1)
    assert paths.socket_path(f"unix:{path}") == path
    for address in (
        f"unix:{path}b",
        f"unix:{path[:-1]}é",
        "unix:",
        "unix:x",
        "unix:/x/",
        "unix:/\0",
    ):
        with pytest.raises(ConfigError):
            paths.socket_path(address)
