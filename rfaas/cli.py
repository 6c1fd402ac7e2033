"""The command line: a parser, a validated record, one dispatch.

Nothing heavy is imported here: each command imports what it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from rfaas import quick

TYPE_CHECKING = False  # to type checkers it is True; `typing` itself costs 5 ms
if TYPE_CHECKING:
    import argparse

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    try:
        words = sys.argv[1:] if arguments is None else arguments
        options = quick.parse(words)
        if options is None:
            from rfaas.commands import build_parser

            parser = build_parser()
            if not words:
                parser.print_help(sys.stderr)  # its usage alone would name no command
                return 2  # as argparse does
            options = parser.parse_args(words)
        return _dispatch(options)
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
        text = f"rfaas: {error}"
        if "JOURNAL_STREAM" in os.environ:  # perhaps of a shell that the journal has nothing of
            from rfaas.launch import service

            text = service.marked(3, text) if service.is_journal(2) else text
        from rfaas import terminal  # a function's own words may be in there

        print(terminal.shown(text, sys.stderr), file=sys.stderr)
        return error.exit_status


def _dispatch(options: argparse.Namespace) -> int:
    match options.command:
        case "version":
            from rfaas.admin import about

            if options.verify:
                return about.verify()
            return about.run(options.json)
        case "completion":
            from rfaas.admin import completion
            from rfaas.commands import build_parser

            print(completion.script(build_parser(), options.shell), end="")
            return 0
        case "install":
            from rfaas.admin import install

            return install.run(options)
        case "pack":
            from rfaas.admin import pack

            return pack.run(options)
    return _dispatch_configured(options)


def _dispatch_configured(options: argparse.Namespace) -> int:
    from rfaas.launch import embedded

    carried = embedded.read()
    overrides = _overrides(options)
    if options.command == "config":
        from rfaas.admin import config_command

        return config_command.run(options, overrides, carried)
    from rfaas import config

    loaded = config.load(options.config, overrides=overrides, embedded=carried)
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
        case "devices":
            from rfaas.diagnose import command as diagnosis

            return diagnosis.run_devices(options)
        case "doctor":
            from rfaas.diagnose import command as diagnosis

            return diagnosis.run_doctor(loaded.config, options)
        case "nodes" | "leases" | "bills" | "events" | "status" | "top" | "logs":
            from rfaas.admin import tables

            return tables.run(loaded.config, options)
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
