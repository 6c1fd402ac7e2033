"""`rfaas install`: on a machine that is a directory, with a recording systemctl."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from rfaas.admin import install, units
from rfaas.admin.install import System, Wish
from rfaas.errors import (
    ConfigError,
    NotPermittedError,
    SystemCallError,
    UnavailableError,
    UsageError,
)

TREE = Path(__file__).resolve().parent.parent
ROLES = ("resource-manager", "executor")


class Machine:
    """A directory with what an installation looks at, and the commands that it ran."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.commands: list[list[str]] = []
        self.accounts = {"root"}
        (path / "run/systemd/system").mkdir(parents=True)
        (path / "runtime/systemd").mkdir(parents=True)
        self.environ = {"HOME": str(path / "home"), "XDG_RUNTIME_DIR": str(path / "runtime")}

    def run(self, command: Sequence[str]) -> str:
        self.commands.append(list(command))
        return ""

    def system(self, *, is_root: bool = True) -> System:
        return System(self.environ, self.run, self.accounts.__contains__, is_root, str(self.path))

    def install(self, wish: Wish) -> None:
        install.refuse_system(wish, self.system())
        install.refuse_wish(wish, self.system())
        for step in install.installing(wish, self.system()):
            step.do()

    def uninstall(self, wish: Wish) -> None:
        for step in install.uninstalling(wish, self.system()):
            step.do()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


@pytest.fixture
def program(tmp_path: Path) -> str:
    """One file, at a path that systemd has to have quoted."""
    file = tmp_path / "my rfaas 100%"
    file.write_bytes(b"the program")
    return str(file)


def wish(program: str, *, user: bool = False, form: str = "zipapp", role: str = "executor") -> Wish:
    return Wish(role, user, "rfaas", "", program, form)


# What it does -----------------------------------------------------------------


def test_a_service_of_the_machine(machine: Machine, program: str) -> None:
    machine.install(wish(program))
    copy = machine.path / "usr/local/bin/rfaas"
    assert copy.read_bytes() == b"the program"
    assert copy.stat().st_mode & 0o777 == 0o755
    assert machine.commands == [
        ["systemd-sysusers", "--inline", 'u rfaas - "rFaaS" /var/lib/rfaas'],
        ["systemctl", "daemon-reload"],
        ["systemctl", "enable", "rfaas-executor.service"],
        ["systemctl", "restart", "rfaas-executor.service"],
    ]
    unit = machine.path / "etc/systemd/system/rfaas-executor.service"
    assert unit.read_text() == units.unit(
        "executor", ["/usr/local/bin/rfaas", "serve", "--role", "executor"]
    )
    assert sorted(file.name for file in unit.parent.iterdir()) == [unit.name]


def test_again_with_another_program(machine: Machine, program: str) -> None:
    machine.install(wish(program))
    machine.accounts.add("rfaas")
    machine.commands.clear()
    Path(program).write_bytes(b"a newer one")
    machine.install(wish(program))
    assert (machine.path / "usr/local/bin/rfaas").read_bytes() == b"a newer one"
    assert [command[1] for command in machine.commands] == ["daemon-reload", "enable", "restart"]


def test_a_service_of_ones_own(machine: Machine, program: str) -> None:
    machine.install(wish(program, user=True))
    unit = machine.path / "home/.config/systemd/user/rfaas-executor.service"
    assert f'ExecStart="{program.replace("%", "%%")}" serve' in unit.read_text()
    assert "User=" not in unit.read_text()
    assert machine.commands[-1] == ["systemctl", "--user", "restart", "rfaas-executor.service"]
    assert not (machine.path / "usr").exists()


def test_a_program_of_a_package_runs_where_it_lies(machine: Machine) -> None:
    wanted = wish("/usr/bin/env")  # that it is there and everybody may read it is enough
    machine.install(wanted)
    assert "ExecStart=/usr/bin/env serve" in install.unit_of(wanted)
    assert not (machine.path / "usr").exists()


def test_uninstalling(machine: Machine, program: str) -> None:
    for user in (False, True):
        wanted = wish(program, user=user)
        machine.install(wanted)
        machine.commands.clear()
        machine.uninstall(wanted)
        assert not os.path.exists(install.unit_path(wanted, machine.system()))
        assert [command[-2:] for command in machine.commands] == [
            ["--now", "rfaas-executor.service"],
            [machine.commands[1][-2], "daemon-reload"],
        ]
        with pytest.raises(UsageError, match="nothing to uninstall"):
            machine.uninstall(wanted)


def test_its_configuration(machine: Machine, program: str, tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text("lane.slots = 3")
    wanted = wish(program, user=True)._replace(config=str(file))
    machine.install(wanted)
    assert f"--role executor --config {file}\n" in install.unit_of(wanted)


# What it refuses ----------------------------------------------------------------


def test_without_systemd(machine: Machine, program: str) -> None:
    shutil.rmtree(machine.path / "run")
    with pytest.raises(UnavailableError, match="was not started by systemd") as caught:
        machine.install(wish(program))
    assert "rfaas serve --role executor" in caught.value.hint
    assert machine.commands == []


def test_without_a_systemd_of_ones_own(machine: Machine, program: str) -> None:
    del machine.environ["XDG_RUNTIME_DIR"]
    with pytest.raises(UnavailableError, match="no systemd of your own") as caught:
        machine.install(wish(program, user=True))
    assert "loginctl enable-linger" in caught.value.hint


def test_without_root(machine: Machine, program: str) -> None:
    with pytest.raises(NotPermittedError) as caught:
        install.refuse_system(wish(program), machine.system(is_root=False))
    assert caught.value.exit_status == 77
    install.refuse_system(wish(program, user=True), machine.system(is_root=False))


def test_with_a_wrong_configuration(machine: Machine, program: str, tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text("lane.slots = 0")
    with pytest.raises(ConfigError, match="too small"):
        machine.install(wish(program)._replace(config=str(file)))
    assert machine.commands == []


def test_a_tree_that_the_account_cannot_reach(machine: Machine, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir(mode=0o700)
    (tree / "rfaas.py").touch()
    wanted = wish(str(tree / "rfaas.py"), form="source tree")
    with pytest.raises(UsageError, match=r"user rfaas cannot reach .*: \S+ has mode 0700"):
        install.refuse_wish(wanted, machine.system())
    install.refuse_wish(wanted._replace(account="root"), machine.system())
    install.refuse_wish(wanted._replace(user=True), machine.system())


def test_a_unit_of_somebody_else_stays(machine: Machine, program: str) -> None:
    unit = machine.path / "etc/systemd/system/rfaas-executor.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/opt/other\n")
    for act in (machine.install, machine.uninstall):
        with pytest.raises(UsageError, match="stays as it is"):
            act(wish(program))
    assert unit.read_text() == "[Service]\nExecStart=/opt/other\n"


def test_a_command_that_fails() -> None:
    assert install.command_output(["sh", "-c", "echo done"]) == "done\n"
    with pytest.raises(SystemCallError, match="failed with status 3: no such unit"):
        install.command_output(["sh", "-c", "echo no such unit >&2; exit 3"])
    with pytest.raises(SystemCallError, match="ENOENT"):
        install.command_output(["/nonexistent/systemctl"])


def test_dry_run_as_a_command(tmp_path: Path) -> None:
    run = subprocess.run(
        [
            *(sys.executable, TREE / "rfaas.py", "install", "--systemd", "--role", "executor"),
            *("--user", "--dry-run"),
        ],
        env={"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith(f"1. write {tmp_path}/.config/systemd/user/rfaas-executor.service")
    assert f"ExecStart={TREE}/rfaas.py serve --role executor\n" in run.stdout
    assert list(tmp_path.iterdir()) == []


# The units ----------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_the_files_for_packages_are_the_same(role: str) -> None:
    file = TREE / "packaging/systemd" / units.name_of(role)
    expected = units.unit(role, ["/usr/bin/rfaas", "serve", "--role", role])
    assert file.read_text() == expected, "run packaging/build_units.py"


def test_the_account_for_packages_is_the_same() -> None:
    line = (TREE / "packaging/systemd/rfaas.sysusers").read_text()
    assert line == f'u {units.ACCOUNT} - "rFaaS" {units.STATE_DIR}\n'


@pytest.mark.parametrize("user", [False, True])
@pytest.mark.parametrize("role", ROLES)
def test_systemd_understands_the_units(tmp_path: Path, role: str, user: bool) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    unit = tmp_path / units.name_of(role)
    unit.write_text(
        units.unit(role, ["/bin/true", "a b", "100%", "$x"], user=user, two_processes=user)
    )
    run = subprocess.run(
        [tool, "verify", "--man=no", *(["--user"] if user else []), unit],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("/usr/bin/rfaas", "/usr/bin/rfaas"),
        ("100%", "100%%"),
        ("$HOME", "$$HOME"),
        ("a b", '"a b"'),
        ('a"b\\c', '"a\\"b\\\\c"'),
        ("", '""'),
    ],
)
def test_words_of_a_command(word: str, expected: str) -> None:
    assert units.quoted(word) == expected


def test_what_would_break_workers_is_not_in_the_executors_unit() -> None:
    text = units.unit("executor", ["/usr/bin/rfaas"])
    keys = {line.partition("=")[0] for line in text.splitlines() if not line.startswith("#")}
    implies_no_new_privileges = {
        *("LockPersonality", "MemoryDenyWriteExecute", "ProtectHostname", "ProtectKernelModules"),
        *("RestrictAddressFamilies", "RestrictNamespaces", "RestrictRealtime"),
        *("RestrictSUIDSGID", "SystemCallArchitectures", "SystemCallFilter", "NoNewPrivileges"),
    }
    takes_from_functions = {
        *("PrivateDevices", "PrivateTmp", "ProtectHome", "ProtectClock", "ProtectControlGroups"),
        *("ProtectKernelLogs", "ProtectKernelTunables", "ProtectProc", "CapabilityBoundingSet"),
    }
    assert keys & (implies_no_new_privileges | takes_from_functions) == set()
    assert {"Type", "KillMode", "Delegate", "OOMPolicy", "LimitMEMLOCK"} <= keys
