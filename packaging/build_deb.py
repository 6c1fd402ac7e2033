"""Builds dist/rfaas_VERSION_amd64.deb from the zipapp, the units, the manual and completion.

    .venv/bin/python packaging/build_deb.py [--program dist/rfaas] [--output-dir dist]

A package for those who install by apt and not by scp; what is in it is what
`make dist`, `make man` and `rfaas completion` make.  It starts no role: which node
takes on which is for whoever installs it, `systemctl enable --now rfaas-executor`.
The same tree and program give the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # -I leaves it out
sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
import build_man
import build_units
import parts
from parts import TREE

CONTROL = """\
Package: rfaas
Version: {version}
Architecture: amd64
Maintainer: the rFaaS authors <rfaas@localhost>
Installed-Size: {kilobytes}
Depends: python3 (>= 3.10)
Recommends: libibverbs1, librdmacm1, ibverbs-providers
Section: net
Priority: optional
Description: elastic remote cores for HPC programs, at network speed
 A program leases cores of another node, sends its functions there once, and
 from then on a call is one write into the memory of a waiting worker.
"""
POSTINST = """\
#!/bin/sh
set -e
if [ "$1" = configure ]; then
    if command -v systemd-sysusers >/dev/null; then
        systemd-sysusers rfaas.conf
    elif ! getent passwd rfaas >/dev/null; then
        useradd --system --user-group --home-dir /var/lib/rfaas --shell /usr/sbin/nologin rfaas
    fi
    [ ! -d /run/systemd/system ] || systemctl daemon-reload
fi
"""
PRERM = """\
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    systemctl disable --now rfaas-executor.service rfaas-resource-manager.service
fi
"""
POSTRM = """\
#!/bin/sh
set -e
[ ! -d /run/systemd/system ] || systemctl daemon-reload
"""
CONFFILES = "/etc/rfaas/rfaas.toml\n"
SCRIPTS = {"postinst": POSTINST, "prerm": PRERM, "postrm": POSTRM}


def contents(program: Path) -> dict[str, tuple[bytes, int]]:
    """Every file of the package: bytes and mode by its path."""
    from rfaas.admin import completion
    from rfaas.commands import build_parser

    shells = {
        "bash": "usr/share/bash-completion/completions/rfaas",
        "zsh": "usr/share/zsh/vendor-completions/_rfaas",
        "fish": "usr/share/fish/vendor_completions.d/rfaas.fish",
    }
    units = build_units.unit_files()
    found = {
        "usr/bin/rfaas": (program.read_bytes(), 0o755),
        "usr/lib/sysusers.d/rfaas.conf": (units.pop("rfaas.sysusers").encode(), 0o644),
        "usr/include/rfaas.h": ((TREE / "functions/rfaas.h").read_bytes(), 0o644),
        "usr/share/doc/rfaas/copyright": ((TREE / "LICENSE").read_bytes(), 0o644),
        "etc/rfaas/rfaas.toml": ((TREE / "etc/rfaas.toml").read_bytes(), 0o644),
    }
    for name, text in units.items():
        found[f"lib/systemd/system/{name}"] = (text.encode(), 0o644)
    for name, text in build_man.pages().items():
        page = gzip.compress(text.encode(), mtime=0)
        found[f"usr/share/man/man1/{name}.gz"] = (page, 0o644)
    for shell, path in shells.items():
        found[path] = (completion.script(build_parser(), shell).encode(), 0o644)
    return found


def build(program: Path, folder: Path) -> Path:
    """Write the package into `folder`; returns its path."""
    files = contents(program)
    size = sum(len(data) for data, _ in files.values())
    control = CONTROL.format(version=parts.version(), kilobytes=-(-size // 1024))
    files["DEBIAN/control"] = (control.encode(), 0o644)
    files["DEBIAN/conffiles"] = (CONFFILES.encode(), 0o644)
    for name, text in SCRIPTS.items():
        files[f"DEBIAN/{name}"] = (text.encode(), 0o755)
    package = folder / f"rfaas_{parts.version()}_amd64.deb"
    with tempfile.TemporaryDirectory() as work:
        os.chmod(work, 0o755)
        for name, (data, mode) in files.items():
            target = Path(work, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            target.chmod(mode)
        for place, _, _ in os.walk(work):
            os.chmod(place, 0o755)  # whatever the umask
        subprocess.run(
            # Nothing is gained by packing what is packed well already; gzip is read everywhere.
            ["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", work, str(package)],
            env=os.environ | {"SOURCE_DATE_EPOCH": str(parts.source_date_epoch())},
            stdout=subprocess.DEVNULL,
            check=True,
        )
    return package


def main() -> int:
    """Build it; say how large it is."""
    parser = argparse.ArgumentParser(description="Build the Debian package.")
    parser.add_argument("--program", default="dist/rfaas", metavar="FILE")
    parser.add_argument("--output-dir", default="dist", metavar="DIR")
    options = parser.parse_args()
    if shutil.which("dpkg-deb") is None:
        print("dist: there is no dpkg-deb: apt-get install dpkg", file=sys.stderr)
        return 69
    program = TREE / options.program
    if not program.exists():
        print(f"dist: there is no {program}\nhint: `make dist` builds it", file=sys.stderr)
        return 69
    package = build(program, TREE / options.output_dir)
    parts.say(f"{package}: {package.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
