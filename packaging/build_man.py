"""Writes the manual: rfaas.1 and one page for each subcommand, such as rfaas-serve.1.

    .venv/bin/python packaging/build_man.py build/man

What the parser knows comes from the parser, by argparse-manpage; what it does not
know (exit statuses, files, environment, examples) stands below.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
MACROS = (".TH", ".SH", ".SS", ".B", ".BR", ".TP", ".PP", ".nf", ".fi", ".RS", ".RE")

# By number; a test holds it to rfaas/errors.py.
EXIT_STATUS = {
    0: "Done.",
    1: "An error of a kind that has no number of its own.",
    2: "Wrong usage: the command line, or something that was asked for cannot be right.",
    65: "The library, its input, or the program's own file is wrong.",
    69: "A peer is not there or is gone, or what is needed does not run here.",
    70: "The function failed, or its worker crashed; or a bug of rfaas.",
    71: "The operating system refused.",
    75: "No cores or memory are free now; try again later.",
    76: "A peer broke the protocol, or speaks another version of it.",
    77: "It takes another user, root as a rule.",
    78: "The configuration is wrong.",
    124: "A deadline passed.",
    130: "Interrupted by Ctrl-C.",
    141: "Whoever read the output has gone.",
}

FILES = {
    "/etc/rfaas/rfaas.toml": "The machine's configuration, read where none is named.",
    "~/.config/rfaas/rfaas.toml": "The user's, read in its place where it is there.",
    "/tmp/rfaas-UID": "Sockets, where there is no better directory; see RFAAS_RUNTIME_DIR.",
    "~/.local/state/rfaas": "The resource manager's store; see RFAAS_STATE_DIR.",
}
UNIT_FILES = {
    "/etc/systemd/system/rfaas-ROLE.service": "The unit of a service of the machine.",
    "~/.config/systemd/user/rfaas-ROLE.service": "The unit of a service of your own (--user).",
    "/usr/local/bin/rfaas": "The copy of the program that a service of the machine runs.",
    "/run/rfaas": "Sockets of services of the machine.",
    "/var/lib/rfaas": "What they keep.",
}

ENVIRONMENT = {
    "RFAAS_CONFIG": "The configuration file, where --config does not name one.",
    "RFAAS_SECTION_KEY": "A key of the configuration, such as RFAAS_LANE_SLOTS for lane.slots.",
    "RFAAS_RUNTIME_DIR": "Where sockets go; otherwise $XDG_RUNTIME_DIR/rfaas, or /tmp/rfaas-UID.",
    "RFAAS_STATE_DIR": "Where the store goes; otherwise $XDG_STATE_HOME/rfaas, or "
    "~/.local/state/rfaas.",
    "RFAAS_PYTHON": "The interpreter that the zipapp runs with (python3).",
}

# By command ("" is rfaas itself): what it is for, and the command lines that do it.
EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "": (
        ("Call a function; nothing has to run before:", "rfaas call libfunctions.so echo input"),
        ("See the whole path on this machine:", "rfaas demo"),
    ),
    "serve": (
        ("One per cluster, and one per node:", "rfaas serve --role resource-manager"),
        ("", "rfaas serve --role executor"),
        (
            "Lend four cores, without a manager:",
            "rfaas serve --role executor --resource-manager none --node-cores 4",
        ),
    ),
    "call": (
        ("Text in, text out:", "echo hello | rfaas call libfunctions.so echo -"),
        (
            "A thousand times, with the time that it took:",
            "rfaas call libfunctions.so echo input --repeat 1000 --stats -o output",
        ),
    ),
    "nodes": (("Free cores, for a program to read:", "rfaas nodes --json"),),
    "logs": (("What the functions of a lease have printed:", "rfaas logs 7f3a9c0d"),),
    "leases": (("Those that ended lately, too:", "rfaas leases --all"),),
    "bills": (
        (
            "What clients used in a week, for a spreadsheet:",
            "rfaas bills --since 7d --by client --csv",
        ),
        ("What one client used today, as JSON:", "rfaas bills --client alice@login1:4711 --json"),
    ),
    "events": (("What happens, as it does:", "rfaas events --last 20 --watch"),),
    "status": (("How the resource manager is:", "rfaas status"),),
    "top": (("The cluster, live:", "rfaas top"), ("Once, for a mail:", "rfaas top --once --plain")),
    "devices": (("RDMA devices, ready for the configuration:", "rfaas devices --toml"),),
    "doctor": (("Whether RDMA can work here:", "rfaas doctor --need verbs"),),
    "bench": (
        ("The round trip of a kilobyte, hot:", "rfaas bench hot --size 1024"),
        ("Cold starts, as JSON:", "rfaas bench cold --json"),
    ),
    "demo": (("The whole path, with pictures in a directory:", "rfaas demo --output pictures"),),
    "config": (
        ("What holds here, and where each value comes from:", "rfaas config show"),
        ("All that is wrong with a file:", "rfaas config check --config site.toml"),
        ("What a node will get:", "rfaas config show --config site.toml --host gpu-07"),
        ("A file to begin with:", "rfaas config default > site.toml"),
    ),
    "install": (
        (
            "Executor on this node, from its boot on:",
            "sudo ./rfaas install --systemd --role executor",
        ),
        ("What that would do:", "./rfaas install --systemd --role executor --dry-run"),
        ("Take it away again:", "sudo rfaas install --systemd --role executor --uninstall"),
    ),
    "version": (("For a report of a fault:", "rfaas version --json"),),
    "completion": (
        (
            "For fish:",
            "rfaas completion fish > ~/.config/fish/completions/rfaas.fish",
        ),
        ("In this bash:", 'eval "$(rfaas completion bash)"'),
    ),
    "pack": (
        (
            "One file for a site, with its configuration inside:",
            "rfaas pack --config site.toml -o rfaas-site",
        ),
        ("Then, for each node:", "scp rfaas-site node:"),
    ),
}


def pages() -> dict[str, str]:
    """All pages by file name."""
    from rfaas.commands import build_parser

    os.environ["COLUMNS"] = "80"  # argparse breaks lines at the terminal's width
    parser = build_parser()
    (group,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    names = list(group.choices)
    about = {action.dest: action.help or "" for action in group._choices_actions}
    found = {"rfaas.1": page("", parser, "elastic remote cores at network speed", names)}
    for name, below in group.choices.items():
        found[f"rfaas-{name}.1"] = page(name, below, about[name], names)
    return found


def page(name: str, parser: argparse.ArgumentParser, about: str, names: list[str]) -> str:
    """One page; `name` is the subcommand, "" for rfaas itself."""
    from argparse_manpage.manpage import Manpage

    import rfaas

    parser.epilog = None  # the exit statuses, which have a section here
    manual = Manpage(
        parser,
        {
            "project_name": "rfaas",
            "version": rfaas.__version__,
            "manual_title": "rFaaS",
            "description": about,
            "date": date(),
        },
    )
    manual.prog = f"rfaas-{name}" if name else "rfaas"
    # Of rfaas itself, the list of commands; what each takes is on its own page.
    body = str(manual).partition("\n.SH COMMAND ")[0].splitlines()
    body[0] = body[0].replace(manual.date.replace("-", "\\-"), manual.date)  # no text, a date
    files = FILES | (UNIT_FILES if name == "install" else {})
    others = [f"rfaas-{other}" for other in names if other != name]
    lines = [
        *(_guarded(line) for line in body),
        *_section("EXIT STATUS", {str(number): text for number, text in EXIT_STATUS.items()}),
        *_section("FILES", files),
        *_section("ENVIRONMENT", ENVIRONMENT),
        *_examples(EXAMPLES.get(name, ())),
        ".SH SEE ALSO",
        " ,\n".join(f".BR {_text(other)} (1)" for other in (["rfaas"] if name else []) + others),
    ]
    return "\n".join(line for line in lines if line) + "\n"


def date() -> str:
    """Of the last commit, so that the same tree gives the same pages."""
    stamp = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not stamp:
        git = ["git", "-C", str(TREE), "log", "-1", "--format=%ct"]
        stamp = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return time.strftime("%Y-%m-%d", time.gmtime(int(stamp or 0)))


def _section(title: str, entries: dict[str, str]) -> list[str]:
    lines = [f".SH {title}"]
    for term, text in entries.items():
        lines += [".TP", f".B {_text(term)}", _text(text)]
    return lines


def _examples(examples: tuple[tuple[str, str], ...]) -> list[str]:
    lines = [".SH EXAMPLES"]
    for about, command in examples:
        lines += [".PP"] if about and len(lines) > 1 else []
        lines += [_text(about)] if about else []
        lines += [".RS 4", ".nf", _text(command), ".fi", ".RE"]
    return lines


def _text(text: str) -> str:
    # ~, ^ and ` come out as other characters than one can type, groff_char(7).
    for plain, escaped in (("\\", "\\e"), ("-", "\\-"), ("~", "\\(ti"), ("`", "\\(ga")):
        text = text.replace(plain, escaped)
    return f"\\&{text}" if text.startswith((".", "'")) else text


def _guarded(line: str) -> str:
    """A line of text that begins as a request does, made text again."""
    is_request = line.split(" ", maxsplit=1)[0] in MACROS
    line = line if is_request else line.replace("~", "\\(ti").replace("`", "\\(ga")
    return f"\\&{line}" if line.startswith((".", "'")) and not is_request else line


def main() -> int:
    """Write all pages to the directory given, and nothing else is left there."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("rfaas*.1"):
        old.unlink()
    for name, text in pages().items():
        (folder / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(TREE))
    sys.exit(main())
