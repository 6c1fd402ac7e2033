"""Writes packaging/systemd/: the units for packages, from the template of `rfaas install`."""

from __future__ import annotations

import sys
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
PROGRAM = "/usr/bin/rfaas"  # where packages put it
ROLES = ("resource-manager", "executor")


def unit_files() -> dict[str, str]:
    """Text by name."""
    from rfaas.admin import units

    files = {
        units.name_of(role): units.unit(role, [PROGRAM, "serve", "--role", role]) for role in ROLES
    }
    files["rfaas.sysusers"] = f'u {units.ACCOUNT} - "rFaaS" {units.STATE_DIR}\n'
    return files


if __name__ == "__main__":
    sys.path.insert(0, str(TREE))
    for name, text in unit_files().items():
        (TREE / "packaging/systemd" / name).write_text(text)
