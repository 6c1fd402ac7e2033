"""The commands and their flags, as argparse has them.

The man page and the shells' completions are made from `build_parser`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from rfaas import __version__

# Flags that stand for a configuration key: (flag, key, metavar, help).
TRANSPORT_FLAG = ("--transport", "lane.transport", "NAME", "how calls travel: auto, shm or verbs")
LEASE_FLAGS = (
    ("--cores", "lease.cores", "N", "cores to lease, one lane each"),
    ("--memory", "lease.memory", "SIZE", "memory to lease, such as 2GiB"),
    ("--gpus", "lease.gpus", "N", "GPUs to lease"),
    (
        *("--isolation", "lease.isolation", "LEVEL"),
        "how a worker is shut in: none, process, sandbox, bubblewrap, container",
    ),
    ("--image", "lease.image", "NAME", "the image of level container: NAME@sha256:DIGEST"),
    TRANSPORT_FLAG,
    ("--slots", "lane.slots", "N", "calls that a lane holds at once"),
    ("--slot-bytes", "lane.slot_bytes", "SIZE", "largest input and output of a call"),
    ("--hot-timeout-ms", "lane.hot_timeout_ms", "MS", "spin so long after a call; -1: for ever"),
    ("--timeout", "client.call_timeout_s", "S", "deadline of each call in seconds; 0: none"),
)
CLIENT_FLAGS = (
    ("--resource-manager", "client.resource_manager", "ADDRESS", "ask the resource manager there"),
    ("--executor", "client.executor", "ADDRESS", "ask an executor there; 'private': start one"),
    ("--device", "rdma.device", "NAME", "the RDMA device, by name or by netdev"),
)
SERVE_FLAGS = (
    ("--address", "", "ADDRESS", "listen here, such as unix:/run/rfaas/executor.sock"),
    ("--name", "executor.name", "NAME", "the node's name"),
    ("--node-cores", "executor.cores", "N", "cores to lend; 'all'"),
    ("--node-memory", "executor.memory", "SIZE", "memory to lend; 'all'"),
    ("--node-gpus", "executor.gpus", "LIST", "GPUs to lend; 'auto': all there are; 'none'"),
    ("--resource-manager", "executor.resource_manager", "ADDRESS", "join it; 'none': grant alone"),
    ("--store", "resource_manager.store", "FILE", "the resource manager's database"),
    ("--device", "rdma.device", "NAME", "the RDMA device of workers, by name or by netdev"),
)


class Parser(argparse.ArgumentParser):
    """argparse's own, which would import shutil and three decompressors to learn the width."""

    def _get_formatter(self) -> argparse.HelpFormatter:
        return argparse.HelpFormatter(self.prog, width=_columns() - 2)


def _columns() -> int:
    """Of the terminal, as shutil.get_terminal_size finds them."""
    if (text := os.environ.get("COLUMNS", "")).isdecimal() and int(text) > 0:
        return int(text)
    try:
        return os.get_terminal_size(1).columns or 80
    except OSError:  # not a terminal
        return 80


def build_parser(only: str = "") -> argparse.ArgumentParser:
    """The parser of all subcommands; with `only` "call" or "serve", of that one: 1 ms less."""
    parser: argparse.ArgumentParser = Parser(
        prog="rfaas",
        description="Functions as a service at the speed of RDMA: lease cores on other nodes "
        "and call functions there by writing into a worker's memory.",
        epilog="Exit status: 0 done; 2 wrong usage; 65 the library or its input is wrong; "
        "69 a peer is not there or gone; 70 the function failed; 71 the system refused; "
        "75 no cores now; 76 a peer broke the protocol; 77 it takes another user; "
        "78 wrong configuration; "
        "124 deadline passed; 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"rfaas {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    if only in ("", "serve"):
        _add_serve(commands)
    if only in ("", "call"):
        _add_call(commands)
    if only:
        return parser
    _add_reports(commands)
    logs = commands.add_parser(
        "logs",
        help="print what the functions of a lease have written",
        description="Print the last 64 KiB that each of the lease's last four workers wrote to its "
        "standard output and error, the oldest first, also of a lease that is over.",
    )
    logs.add_argument("lease", metavar="LEASE", help="its id, or the beginning of it")
    _add_common(logs, CLIENT_FLAGS)
    _add_bench(commands)
    demo = commands.add_parser(
        "demo",
        help="show the whole path on this machine",
        description="Start a resource manager and an executor, lease a core, call functions, "
        "show how long each took, and leave nothing behind.",
    )
    demo.add_argument("--output", default="demo-output", metavar="DIR", help="where pictures go")
    _add_common(demo, ())
    _add_config(commands)
    _add_pack(commands)
    _add_install(commands)
    _add_unconfigured(commands)
    _add_diagnosis(commands)
    return parser


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = commands.add_parser(
        "serve",
        help="take on a role on this node",
        description="Take on a role until interrupted: resource-manager (one per cluster), "
        "executor (one per node), or all (both, for one machine). It says in one line when it is "
        "ready, and what to type next.",
    )
    serve.add_argument(
        "--role", required=True, choices=("resource-manager", "executor", "all"), help="the role"
    )
    serve.add_argument("--private-fd", type=int, default=-1, help=argparse.SUPPRESS)
    _add_common(serve, SERVE_FLAGS)


def _add_call(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    call = commands.add_parser(
        "call",
        help="call a function of a library",
        description="Lease a core, send LIBRARY, call FUNCTION on INPUT, write the result. With "
        "no resource manager running, a private executor is started and taken away again.",
    )
    call.add_argument("library", metavar="LIBRARY", help="a shared object (functions/rfaas.h)")
    call.add_argument("function", metavar="FUNCTION", help="a function that it exports")
    call.add_argument(
        "input",
        metavar="INPUT",
        nargs="?",
        default=None,
        help="a file; '-': standard input; none: no bytes",
    )
    call.add_argument("-o", "--output", metavar="FILE", help="write the result here, not to stdout")
    call.add_argument(
        "--repeat", type=int, default=1, metavar="N", help="call so often, write once"
    )
    call.add_argument("--stats", action="store_true", help="say on stderr how long it took")
    _add_common(call, (*CLIENT_FLAGS, *LEASE_FLAGS))


def _add_reports(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for name, about in (
        ("nodes", "list the nodes and their free cores"),
        ("leases", "list the leases that are live"),
        ("bills", "list what leases have used, by day"),
        ("events", "list what happened to nodes and leases"),
        ("status", "tell the state of the resource manager"),
        ("top", "watch nodes, leases and calls"),
    ):
        command = commands.add_parser(name, help=about, description=about.capitalize() + ".")
        command.add_argument("--json", action="store_true", help="print JSON, one object a line")
        if name != "top":
            command.add_argument(
                "--watch",
                nargs="?",
                type=float,
                const=1.0,
                metavar="S",
                help="print it again every S seconds (1), until interrupted",
            )
        if name == "leases":
            command.add_argument("--all", action="store_true", help="also those that ended lately")
        if name == "bills":
            _add_bills(command)
        if name == "events":
            command.add_argument(
                "--last", type=int, default=100, metavar="N", help="so many of the last (100)"
            )
        if name == "top":
            command.add_argument("--once", action="store_true", help="one picture, then end")
            command.add_argument("--plain", action="store_true", help="no colours, no rich")
        _add_common(command, CLIENT_FLAGS)


def _add_bills(command: argparse.ArgumentParser) -> None:
    command.add_argument("--csv", action="store_true", help="print CSV, with a line of names")
    command.add_argument("--client", default="", metavar="C", help="of this client alone")
    day = "2026-11-23, today, yesterday, or 7d for a week ago"
    command.add_argument("--since", default="today", metavar="D", help=f"first day: {day} (today)")
    command.add_argument("--until", default="", metavar="D", help="last day (today), both in UTC")
    command.add_argument(
        "--by", default="", choices=("lease", "client", "day"), help="sum them up so"
    )


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure invocations",
        description="Measure on the configured cluster, or on a private executor. What each "
        "figure means is in docs/benchmarks.md.",
    )
    bench.add_argument(
        "what",
        choices=("hot", "warm", "cold", "throughput", "payload", "leases", "faults"),
        help="what to measure; leases: on a resource manager of its own; faults: how soon a crash "
        "or a deadline is told and all of its function gone, on a private executor",
    )
    bench.add_argument("--json", action="store_true", help="print one JSON object")
    bench.add_argument(
        "--size",
        type=int,
        default=64,
        metavar="BYTES",
        help="input of each call (64); hot, throughput, and warm up to 104",
    )
    bench.add_argument("--calls", type=int, metavar="N", help="how many; not for payload")
    bench.add_argument(
        "--inflight", type=int, default=16, metavar="N", help="calls at once (16); throughput"
    )
    bench.add_argument(
        "--clients", type=int, default=64, metavar="N", help="clients at once (64); leases"
    )
    bench.add_argument("--nodes", type=int, default=1, metavar="M", help="nodes (1); leases")
    bench.add_argument(
        "--pause-ms",
        type=int,
        default=0,
        metavar="N",
        help="between two leases (0: each as soon as the last one is given back); cold",
    )
    bench.add_argument(
        "--ledger",
        action="store_true",
        help="the ledger alone, with 10 to 10,000 nodes; leases",
    )
    isolation = [flag for flag in LEASE_FLAGS if flag[0] in ("--isolation", "--image")]
    _add_common(bench, (*CLIENT_FLAGS, *isolation, TRANSPORT_FLAG))


def _add_config(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    config = commands.add_parser(
        "config",
        help="show or check the configuration",
        description="show: each value and where it came from; check: whether it is valid; "
        "default: a file with every key, its unit and its reason.",
    )
    config.add_argument("what", choices=("show", "check", "default"), help="what to do")
    config.add_argument("--json", action="store_true", help="print JSON (show, check)")
    config.add_argument(
        "--host", default="", metavar="NAME", help="as it is for this host (this machine's name)"
    )
    _add_common(config, ())


def _add_pack(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    pack = commands.add_parser(
        "pack",
        help="write a copy of this program that carries a configuration",
        description="Check a configuration and write a copy of this program that carries it. "
        "The copy is all that a node needs: scp it there and run it.",
    )
    pack.add_argument("--config", required=True, metavar="FILE", help="the configuration (TOML)")
    pack.add_argument("-o", "--output", required=True, metavar="FILE", help="the copy to write")
    pack.add_argument("--base", default="", metavar="FILE", help="copy this rfaas, not the one run")
    pack.add_argument("--key-file", default="", metavar="FILE", help="a key to carry as well")
    pack.add_argument(
        "--embed-private-key", action="store_true", help="even where that key is a private one"
    )
    pack.add_argument(
        "--yes-embed-private-key", action="store_true", help="yes: whoever has the copy has the key"
    )


def _add_install(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    install = commands.add_parser(
        "install",
        help="run a role as a service of systemd",
        description="Write a systemd unit for a role, enable it and start it, and say what is "
        "done and why. Without --user it is a service of the machine and needs root: it runs "
        "as the system user rfaas, which is made, and a copy of this program goes to "
        "/usr/local/bin/rfaas.",
    )
    install.add_argument("--systemd", action="store_true", required=True, help="with systemd")
    install.add_argument(
        "--role", required=True, choices=("resource-manager", "executor"), help="the role"
    )
    install.add_argument("--user", action="store_true", help="as a service of your own user")
    install.add_argument(
        "--account", default="rfaas", metavar="NAME", help="the user that it runs as (rfaas)"
    )
    install.add_argument("--dry-run", action="store_true", help="say what would be done, only")
    install.add_argument("--uninstall", action="store_true", help="stop it and remove the unit")
    install.add_argument("--config", metavar="FILE", help="configuration file that it is to read")


def _add_unconfigured(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Commands that help even where the configuration is broken: they read none."""
    version = commands.add_parser(
        "version",
        help="say which versions these are",
        description="Say the version of this program, of its protocol and of its configuration, "
        "of all that it carries, and of the rdma-core that it found on this machine.",
    )
    version.add_argument("--json", action="store_true", help="print one JSON object")
    version.add_argument(
        "--verify", action="store_true", help="check every byte of this program's file, only"
    )
    completion = commands.add_parser(
        "completion",
        help="print a shell's completion",
        description="Print what makes a shell complete rfaas's commands and flags. For bash: "
        "rfaas completion bash > ~/.local/share/bash-completion/completions/rfaas; for zsh: "
        "rfaas completion zsh > a file _rfaas in a folder of $fpath; for fish: "
        "rfaas completion fish > ~/.config/fish/completions/rfaas.fish.",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")


def _add_diagnosis(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    devices = commands.add_parser(
        "devices",
        help="list RDMA devices",
        description="List the RDMA devices of this machine, or of others, with their state, "
        "addresses and limits. Exit status 69: there is none.",
    )
    form = devices.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, one object per machine")
    form.add_argument("--toml", action="store_true", help="print a block for the configuration")
    devices.add_argument("--hosts", metavar="LIST", help="ask these, such as a,b or node[01-16]")
    devices.add_argument(
        "--remote",
        default="ssh",
        metavar="COMMAND",
        help="what runs a command on a host: ssh, srun, or words with {host} (ssh)",
    )
    devices.add_argument(
        "--remote-rfaas", default="", metavar="PROGRAM", help="rfaas there (where it is here)"
    )
    devices.add_argument(
        "--remote-timeout", type=float, default=30.0, metavar="S", help="for each host (30)"
    )
    _add_common(devices, ())
    doctor = commands.add_parser(
        "doctor",
        help="say what stands between this machine and a working set-up",
        description="Look at the machine and say what is missing, what that blocks, and which "
        "command mends it. Exit status 69: what --need names cannot work.",
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.add_argument(
        "--need",
        choices=("shm", "verbs", "sandbox", "container"),
        default="shm",
        help="what must work (shm)",
    )
    window = [flag for flag in LEASE_FLAGS if flag[1] in ("lane.slots", "lane.slot_bytes")]
    _add_common(doctor, window)


def _add_common(
    parser: argparse.ArgumentParser, flags: Sequence[tuple[str, str, str, str]]
) -> None:
    for flag, key, metavar, about in flags:
        parser.add_argument(flag, dest=key or "address", metavar=metavar, help=about)
    parser.add_argument("--config", metavar="FILE", help="configuration file (TOML)")
    parser.add_argument(
        "--log-level", dest="log.level", metavar="LEVEL", help="debug, info, warning, error"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set any configuration key, such as lane.slots=32",
    )
