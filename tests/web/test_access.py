"""Keys: who may read them, what they must look like, and that they can be taken back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rfaas.errors import ConfigError
from rfaas.web import access
from rfaas.web.access import Holder, Keys

ADMIN, READ = "a" * 32, "r-._~+/=0123456789" * 2


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.touch(0o600)
    return path


def test_roles_and_names(file: Path) -> None:
    file.write_text(f"# keys\n\nadmin {ADMIN} operators of it\n  read\t{READ}\n")
    keys = Keys(str(file))
    assert keys.holder(ADMIN) == Holder("admin", "operators of it")
    assert keys.holder(READ) == Holder("read", "line 4")
    for wrong in ("", "a", ADMIN[:-1], ADMIN + "a", ADMIN.upper(), "admin"):
        assert keys.holder(wrong) is None


def test_a_role_may_what_those_before_it_may() -> None:
    may = {
        role: [other for other in access.ROLES if Holder(role, "").may(other)]
        for role in access.ROLES
    }
    assert may == {
        "read": ["read"],
        "operate": ["read", "operate"],
        "admin": ["read", "operate", "admin"],
    }


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_file_that_others_may_read(file: Path, mode: int) -> None:
    file.write_text(f"admin {ADMIN}\n")
    file.chmod(mode)
    with pytest.raises(ConfigError, match=f"others may read it \\(mode {mode:04o}\\)"):
        Keys(str(file))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("root " + ADMIN, "line 1: expected a role"),
        ("admin", "line 1: expected a role"),
        ("\nadmin short", "line 2: the key is too short \\(5 characters\\), at least 32"),
        ("admin " + "a" * 31, "too short \\(31"),
        ('admin "' + ADMIN, "a character that no bearer token may have"),
    ],
)
def test_lines_that_are_wrong(file: Path, text: str, fault: str) -> None:
    """And the message never has a key in it."""
    file.write_text(text)
    with pytest.raises(ConfigError, match=fault) as caught:
        Keys(str(file))
    assert ADMIN not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ENOENT"):
        Keys(str(tmp_path / "none"))


def test_a_key_that_is_taken_back(file: Path) -> None:
    file.write_text(f"admin {ADMIN}\nread {READ}\n")
    keys = Keys(str(file))
    file.write_text(f"read {READ}\n")
    os.utime(file, ns=(1, 1))
    assert keys.holder(ADMIN) is None
    assert keys.holder(READ) is not None


def test_a_file_that_becomes_wrong_lets_nobody_in(file: Path) -> None:
    file.write_text(f"admin {ADMIN}\n")
    keys = Keys(str(file))
    assert keys.holder(ADMIN) is not None
    file.chmod(0o644)
    assert keys.holder(ADMIN) is None
    file.chmod(0o600)
    assert keys.holder(ADMIN) is not None
    file.unlink()
    assert keys.holder(ADMIN) is None


def test_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "state" / "http-keys"
    access.create(str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    lines = [line.split() for line in path.read_text().splitlines() if line[0] != "#"]
    assert [line[0] for line in lines] == list(access.ROLES)
    assert len({line[1] for line in lines}) == 3
    keys = Keys(str(path))
    assert all(keys.holder(line[1]) == Holder(line[0], line[2]) for line in lines)
    before = path.read_bytes()
    access.create(str(path))  # one that is there stays
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["http-keys"]
