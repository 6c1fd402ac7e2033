"""`rfaas install`: a role as a service of systemd, written, enabled and explained.

First everything is looked at and refused where it cannot work; what is then done
is a list of steps, each with its reason, which `--dry-run` prints and does not do.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rfaas import config
from rfaas.admin import about, units
from rfaas.errors import NotPermittedError, SystemCallError, UnavailableError, UsageError
from rfaas.launch import embedded
from rfaas.paths import system_text

if TYPE_CHECKING:
    import argparse

PROGRAM = "/usr/local/bin/rfaas"
IN_PLACE = ("/usr/", "/opt/")  # what lies there is meant to be run from there
COMMAND_TIMEOUT_S = 120.0


class System(NamedTuple):
    """The machine, as far as an installation touches it; tests hand in another one.

    `run` runs a command and returns its output, or raises SystemCallError.
    """

    environ: Mapping[str, str]
    run: Callable[[Sequence[str]], str]
    has_account: Callable[[str], bool]
    is_root: bool
    root: str = ""  # stands before every absolute path that is looked at or written


class Step(NamedTuple):
    """One thing to do: what, why, and how."""

    what: str
    why: str
    do: Callable[[], object]


class Wish(NamedTuple):
    """What is to be installed."""

    role: str
    user: bool
    account: str
    config: str  # absolute path, or "" where it finds its configuration by itself
    program: str  # where it lies now
    form: str  # of `about.how_it_runs`

    @property
    def copies(self) -> bool:
        """Whether a copy of the program serves, and not the program where it lies."""
        in_place = self.program.startswith(IN_PLACE)
        return not self.user and self.form in ("binary", "zipapp") and not in_place


def run(options: argparse.Namespace) -> int:
    """Do what the options say, on this machine; returns the exit status."""
    system = System(os.environ, command_output, _has_account, os.geteuid() == 0)
    form, path = about.how_it_runs()
    program = {"source tree": f"{path}/rfaas.py", "installed package": sys.argv[0]}.get(form, path)
    wish = Wish(
        options.role,
        options.user,
        options.account,
        os.path.abspath(options.config) if options.config else "",
        os.path.abspath(program),
        form,
    )
    if not options.dry_run:
        refuse_system(wish, system)
    if not options.uninstall:
        refuse_wish(wish, system)
    steps = list((uninstalling if options.uninstall else installing)(wish, system))
    for number, step in enumerate(steps, start=1):
        print(f"{number}. {step.what}\n   {step.why}", flush=True)
        if not options.dry_run:
            step.do()
    if options.dry_run and not options.uninstall:
        print(f"\nthe unit would be:\n\n{unit_of(wish)}", end="")
    elif not options.uninstall:
        print(farewell(wish))
    return 0


def refuse_system(wish: Wish, system: System) -> None:
    """Raise where this machine cannot do it.

    Raises:
        UnavailableError: systemd does not run here.
        NotPermittedError: it takes root.
    """
    if not os.path.isdir(f"{system.root}/run/systemd/system"):  # sd_booted(3)
        raise UnavailableError(
            "this machine was not started by systemd: there is no /run/systemd/system",
            hint=f"by hand: rfaas serve --role {wish.role}; --dry-run prints the unit",
        )
    runtime = system.environ.get("XDG_RUNTIME_DIR", "")
    if wish.user and not (runtime and os.path.isdir(f"{runtime}/systemd")):
        raise UnavailableError(
            "no systemd of your own runs: there is no $XDG_RUNTIME_DIR/systemd",
            hint="log in directly instead of by su or sudo, or `loginctl enable-linger`",
        )
    if not wish.user and not system.is_root:
        raise NotPermittedError(
            "a service of the machine is installed by root",
            hint="run it with sudo, or with --user for a service of your own",
        )


def refuse_wish(wish: Wish, system: System) -> None:
    """Raise where the service would not come up.

    Raises:
        UsageError: the program or its configuration lies where the service cannot reach it.
        ConfigError: the configuration that the service would read is wrong.
    """
    # Of our environment the service will see nothing.
    searched = ("HOME", "XDG_CONFIG_HOME") if wish.user else ()
    environ = {key: system.environ[key] for key in searched if key in system.environ}
    config.load(wish.config or None, environ, embedded=embedded.read())
    if not wish.user and wish.account != "root":
        for path in (wish.config, "" if wish.copies else wish.program):
            if path:
                _refuse_unreachable(path, wish.account)


def installing(wish: Wish, system: System) -> Iterator[Step]:
    """The steps of an installation."""
    name, systemctl = units.name_of(wish.role), _systemctl(wish)
    if wish.copies:
        yield Step(
            f"copy {wish.program} to {PROGRAM}",
            f"user {wish.account} may not be able to read where it lies now",
            lambda: _copy(wish.program, system.root + PROGRAM),
        )
    if not wish.user and not system.has_account(wish.account):
        line = f'u {wish.account} - "rFaaS" {units.STATE_DIR}'
        yield Step(
            f"make the system user {wish.account}",
            "clients' functions run as that user: not as root, and with no files of a person's",
            lambda: system.run(["systemd-sysusers", "--inline", line]),
        )
    path = unit_path(wish, system)
    yield Step(f"write {path}", "the unit says how the role runs", lambda: _write(path, wish))
    yield Step(
        " ".join([*systemctl, "daemon-reload"]),
        "systemd reads the unit",
        lambda: system.run([*systemctl, "daemon-reload"]),
    )
    yield Step(
        " ".join([*systemctl, "enable", name]),
        "it starts with the machine" if not wish.user else "it starts when you log in",
        lambda: system.run([*systemctl, "enable", name]),
    )
    yield Step(
        " ".join([*systemctl, "restart", name]),
        "it starts now; one that runs already takes up the new unit",
        lambda: system.run([*systemctl, "restart", name]),
    )


def uninstalling(wish: Wish, system: System) -> Iterator[Step]:
    """The steps that take it away again."""
    name, systemctl, path = units.name_of(wish.role), _systemctl(wish), unit_path(wish, system)
    if not os.path.exists(path):
        raise UsageError(f"nothing to uninstall: there is no {path}")
    _refuse_foreign(path)
    yield Step(
        " ".join([*systemctl, "disable", "--now", name]),
        "it stops, and does not start again",
        lambda: system.run([*systemctl, "disable", "--now", name]),
    )
    kept = "the store" if wish.user else f"{units.STATE_DIR}, {PROGRAM} and the system user"
    yield Step(f"remove {path}", f"what stays: {kept}", lambda: os.unlink(path))
    yield Step(
        " ".join([*systemctl, "daemon-reload"]),
        "systemd forgets the unit",
        lambda: system.run([*systemctl, "daemon-reload"]),
    )


def unit_path(wish: Wish, system: System) -> str:
    """Where the unit goes."""
    if not wish.user:
        return f"{system.root}/etc/systemd/system/{units.name_of(wish.role)}"
    home = system.environ.get("HOME", "/")
    base = system.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    return os.path.join(base, "systemd/user", units.name_of(wish.role))


def unit_of(wish: Wish) -> str:
    """The unit's text."""
    program = PROGRAM if wish.copies else wish.program
    command = [program, "serve", "--role", wish.role]
    if wish.config:
        command += ["--config", wish.config]
    return units.unit(
        wish.role,
        command,
        user=wish.user,
        account=wish.account,
        two_processes=wish.form == "binary",
    )


def farewell(wish: Wish) -> str:
    """What to type next."""
    name, own = units.name_of(wish.role), " --user" if wish.user else ""
    lines = [
        f"see it run:   systemctl{own} status {name}",
        f"read its log: journalctl{own} -u {name}",
        f"undo this:    rfaas install --systemd --role {wish.role}{own} --uninstall",
    ]
    if wish.user:
        lines.append("to keep it running while you are logged out: loginctl enable-linger")
    return "\n".join(lines)


def command_output(command: Sequence[str]) -> str:
    """Run a command to its end; its output.

    Raises:
        SystemCallError: it cannot be run, takes too long, or fails; with what it said.
    """
    shown = " ".join(command)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except OSError as error:
        raise SystemCallError(f"cannot run `{shown}`: {system_text(error)}") from None
    except subprocess.TimeoutExpired:
        raise SystemCallError(f"`{shown}` did not end in {COMMAND_TIMEOUT_S:g} s") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip() or "it said nothing"
        raise SystemCallError(
            f"`{shown}` failed with status {done.returncode}: {said}",
            hint="`journalctl -xe` has more; what was done so far stays, and can be done again",
        )
    return done.stdout


def _systemctl(wish: Wish) -> list[str]:
    return ["systemctl", "--user"] if wish.user else ["systemctl"]


def _refuse_unreachable(path: str, account: str) -> None:
    """Others must be able to read the file, and to pass every directory above it."""
    place, wanted = path, 0o4
    while True:
        try:
            mode = os.stat(place).st_mode
        except OSError as error:
            raise UsageError(f"cannot use {path}: {system_text(error)}") from None
        if not mode & wanted:
            raise UsageError(
                f"user {account} cannot reach {path}: {place} has mode {mode & 0o7777:04o}",
                hint="put it where everybody can read it, such as /opt, or give --account",
            )
        if place == "/":
            return
        place, wanted = os.path.dirname(place), 0o1


def _refuse_foreign(path: str) -> None:
    try:
        with open(path) as file:
            text = file.read()
    except FileNotFoundError:
        return
    except OSError as error:
        raise SystemCallError(f"cannot read {path}: {system_text(error)}") from None
    if units.MARK not in text.partition("\n")[0]:
        raise UsageError(
            f"{path} was not {units.MARK}, it stays as it is",
            hint="move it away, or change it by `systemctl edit`",
        )


def _has_account(account: str) -> bool:
    try:
        pwd.getpwnam(account)
    except KeyError:
        return False
    return True


def _write(path: str, wish: Wish) -> None:
    _refuse_foreign(path)
    _replace(path, unit_of(wish).encode(), 0o644)


def _copy(source: str, target: str) -> None:
    try:
        with open(source, "rb") as file:
            data = file.read()
    except OSError as error:
        raise SystemCallError(f"cannot read {source}: {system_text(error)}") from None
    _replace(target, data, 0o755)


def _replace(path: str, data: bytes, mode: int) -> None:
    """Write a file at one stroke: who runs or reads the old one keeps it."""
    new = f"{path}.new"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(new, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), mode)
        os.replace(new, path)
    except OSError as error:
        raise SystemCallError(f"cannot write {path}: {system_text(error)}") from None
