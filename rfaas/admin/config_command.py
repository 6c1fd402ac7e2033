"""`rfaas config`: which values hold and why, whether they are right, and what there is.

Apart from the dispatch of other commands, which stop at the first fault: `check`
says all of them, and `default` helps even where the configuration is broken.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rfaas import addresses, config, config_text
from rfaas.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from rfaas.config import Loaded


def run(
    options: argparse.Namespace,
    overrides: Mapping[str, object],
    embedded: tuple[str, bytes] | None,
) -> int:
    """Do what `options.what` says: show, check or default; returns the exit status."""
    if options.what == "default":
        print(config_text.default_text(), end="")
        return 0
    loaded, faults = config.examine(
        options.config, overrides=overrides, embedded=embedded, host=options.host
    )
    if loaded is not None and options.what == "check":
        faults = _unusable(loaded)
    if options.what == "check" and options.json:
        import json

        found = [{"fault": fault.text, "hint": fault.hint} for fault in faults]
        print(json.dumps({"ok": not faults, "faults": found}))
    elif options.what == "check" and not faults and loaded is not None:
        print(f"OK: {', '.join(loaded.read) or 'no file is read, defaults hold'}")
    elif options.what == "check" or loaded is None:
        for fault in faults:
            print(f"rfaas: {fault}", file=sys.stderr)
    else:
        print((config_text.show_json if options.json else config_text.show)(loaded), end="")
        return 0
    return ConfigError.exit_status if faults else 0


def _unusable(loaded: Loaded) -> list[ConfigError]:
    """Addresses that nobody gave and that cannot be used all the same: they follow from others."""
    faults = []
    for name in ("resource_manager.address", "executor.address"):
        section, _, key = name.partition(".")
        try:
            addresses.parse(getattr(getattr(loaded.config, section), key))
        except ConfigError as error:
            where = f"{name} ({loaded.origin[name]})"
            faults.append(ConfigError(f"{where}: {error.text}", hint=error.hint))
    return faults
