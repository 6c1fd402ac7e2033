"""The command line: a parser, a validated record, one dispatch.

Nothing heavy is imported here: each command imports what it runs.  The man
page and the shells' completions are made from `build_parser`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from rfaas import __version__

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it

# Flags that stand for a configuration key: (flag, key, metavar, help).
TRANSPORT_FLAG = ("--transport", "lane.transport", "NAME", "how calls travel: auto, shm or verbs")
LEASE_FLAGS = (
    ("--cores", "lease.cores", "N", "cores to lease, one lane each"),
    ("--memory", "lease.memory", "SIZE", "memory to lease, such as 2GiB"),
    ("--isolation", "lease.isolation", "LEVEL", "how a worker is shut in: 'process' today"),
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
    ("--resource-manager", "executor.resource_manager", "ADDRESS", "join it; 'none': grant alone"),
    ("--store", "resource_manager.store", "FILE", "the resource manager's database"),
    ("--device", "rdma.device", "NAME", "the RDMA device of workers, by name or by netdev"),
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog="rfaas",
        description="Functions as a service at the speed of RDMA: lease cores on other nodes "
        "and call functions there by writing into a worker's memory.",
        epilog="Exit status: 0 done; 2 wrong usage; 65 the library or its input is wrong; "
        "69 a peer is not there or gone; 70 the function failed; 71 the system refused; "
        "75 no cores now; 76 a peer broke the protocol; 78 wrong configuration; "
        "124 deadline passed; 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"rfaas {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_call(commands)
    for name, about in (
        ("nodes", "list the nodes and their free cores"),
        ("leases", "list the leases that are live"),
        ("status", "tell the state of the resource manager"),
    ):
        command = commands.add_parser(name, help=about, description=about.capitalize() + ".")
        command.add_argument("--json", action="store_true", help="print JSON, one object a line")
        if name == "leases":
            command.add_argument("--all", action="store_true", help="also those that ended lately")
        _add_common(command, CLIENT_FLAGS)
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


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure invocations",
        description="Measure on the configured cluster, or on a private executor. What each "
        "figure means is in docs/benchmarks.md.",
    )
    bench.add_argument(
        "what", choices=("hot", "warm", "cold", "throughput", "payload"), help="what to measure"
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
    _add_common(bench, (*CLIENT_FLAGS, TRANSPORT_FLAG))


def _add_config(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    config = commands.add_parser(
        "config",
        help="show or check the configuration",
        description="show: each value and where it came from; check: whether it is valid; "
        "default: a file with every key, its unit and its reason.",
    )
    config.add_argument("what", choices=("show", "check", "default"), help="what to do")
    _add_common(config, ())


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
        "--need", choices=("shm", "verbs", "sandbox"), default="shm", help="what must work (shm)"
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    try:
        parser = build_parser()
        if not (sys.argv[1:] if arguments is None else arguments):
            parser.print_help(sys.stderr)  # its usage alone would name no command
            return 2  # as argparse does
        return _dispatch(parser.parse_args(arguments))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; what is left of it must not fail at exit, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141  # 128 + SIGPIPE
    except Exception as error:
        from rfaas.errors import RfaasError

        if not isinstance(error, RfaasError):
            raise
        print(f"rfaas: {error}", file=sys.stderr)
        return error.exit_status


def _dispatch(options: argparse.Namespace) -> int:
    from rfaas import config

    loaded = config.load(options.config, overrides=_overrides(options))
    match options.command:
        case "serve":
            from rfaas import serve

            return serve.run(loaded.config, options.role, options.private_fd)
        case "bench":
            from rfaas.bench import command

            return command.run(loaded.config, options)
        case "demo":
            from rfaas.bench import demo

            return demo.run(loaded.config, options.output)
        case "config":
            from rfaas import config_text

            if options.what == "show":
                print(config_text.show(loaded), end="")
            elif options.what == "default":
                print(config_text.default_text(), end="")
            else:
                print(f"the configuration is valid ({loaded.file or 'no file'})")
            return 0
        case "devices":
            from rfaas.diagnose import command as diagnosis

            return diagnosis.run_devices(options)
        case "doctor":
            from rfaas.diagnose import command as diagnosis

            return diagnosis.run_doctor(loaded.config, options)
    from rfaas.roles import client

    return client.run(loaded.config, options)


def _overrides(options: argparse.Namespace) -> dict[str, object]:
    """The configuration keys that flags set."""
    from rfaas.errors import UsageError

    found = {key: value for key, value in vars(options).items() if "." in key and value is not None}
    for pair in options.set:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set takes KEY=VALUE, not {pair!r}")
        found[key] = value
    address = getattr(options, "address", None)
    if address is not None:
        if options.role == "all":
            raise UsageError(
                "--address is for one role",
                hint="use --set executor.address=... and --set resource_manager.address=...",
            )
        found[f"{options.role.replace('-', '_')}.address"] = address
    return found
