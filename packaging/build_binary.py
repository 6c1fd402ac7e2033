"""Builds dist/rfaas-linux-x86_64: one file for nodes without Python, by PyInstaller.

    .venv/bin/python packaging/build_binary.py [--output FILE] [--python PYTHON] [--root DIR]

PYTHON is the interpreter that goes in; it must have been built with a shared
libpython.  The binary needs the glibc of the system that PYTHON and the native
modules were compiled on.  `--root` names a directory tree of an older one
(packaging/old_root.sh makes it) in which PYTHON is and everything is compiled.

PyInstaller's binary is two processes: a loader that unpacks into a temporary
directory and waits, and the program.  The loader removes the directory, unless it
is killed with SIGKILL.  It is compiled here, with boot/first.c in it: what says that
a copy is damaged, and finds a directory from which programs may be run.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # -I leaves it out
sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
import lean
import parts
import rdma_libraries
from parts import TREE, WORK, BuildError, Python

from rfaas.launch.embedded import FOOTER_BYTES, NO_PART, Footer

BYTES_MAX = 15_000_000
PYINSTALLER = "pyinstaller==6.22.3"
MOUNT = "/rfaas-tree"  # where the tree is inside of --root


def fetch() -> None:
    """PyInstaller and the wheels that are carried, by the tree's own pip."""
    folder = WORK / "pyinstaller"
    fetched = f"{PYINSTALLER} and its source"
    if (folder / "done").exists() and (folder / "done").read_text() == fetched:
        return
    parts.say(f"fetching {PYINSTALLER}")
    shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-I", "-m", "pip"]
    quiet = ["-q", "--no-input", "--disable-pip-version-check"]
    source = ("--no-binary=pyinstaller", PYINSTALLER)
    for command in (
        [*pip, "install", *quiet, "--target", str(folder), "--only-binary=:all:", PYINSTALLER],
        # The loader's source: ours is compiled with it.
        [*pip, "download", *quiet, "-d", str(folder / "source"), "--no-deps", *source],
    ):
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            raise BuildError(f"cannot fetch {PYINSTALLER}:\n{run.stderr}")
    (folder / "done").write_text(fetched)


def loader(work: Path) -> Path:
    """PyInstaller's loader, compiled with packaging/boot/first.c in it and zlib of its own."""
    shutil.rmtree(work, ignore_errors=True)
    (archive,) = (WORK / "pyinstaller/source").glob("pyinstaller-*.tar.gz")
    with tarfile.open(archive) as source:
        for member in source:
            _, _, name = member.name.partition("/")
            if name.startswith(("bootloader/", "PyInstaller/_shared")) and member.isfile():
                target = work / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.extractfile(member).read())
    shutil.copy(TREE / "packaging/boot/first.c", work / "bootloader/src")
    environ = {"LINKFLAGS": "-Wl,--build-id=none"}
    waf = [sys.executable, "-S", "waf", "--target-arch=64bit", "--static-zlib"]
    _run([*waf, "configure", "all"], work / "bootloader", environ)
    return next((work / "PyInstaller/bootloader").glob("*/run"))


def unpacked_bytes(program: Path) -> int:
    """What PyInstaller's loader unpacks at each start: boot/first.c looks for so much room."""
    sys.path.append(str(WORK / "pyinstaller"))
    from PyInstaller.archive.readers import CArchiveReader

    entries = CArchiveReader(str(program)).toc.values()  # at, size, size unpacked, flag, kind
    return sum(size for _, _, size, _, kind in entries if kind in "bx")


def _run(command: list[str], folder: Path, more: dict[str, str] | None = None) -> None:
    run = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | (more or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n{(run.stdout + run.stderr)[-4000:]}")


def stage(python: Python, folder: Path) -> None:
    """All that goes in, as PyInstaller is to find it; run by `python` itself."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(TREE / "rfaas", folder / "rfaas", ignore=shutil.ignore_patterns(*_NOT_STAGED))
    for name, file in parts.native_modules(python).items():
        shutil.copy(file, folder / Path(*name.split(".")).with_suffix(python.suffix))
    quick = folder / "rfaas/quick.py"
    quick.write_text(lean.source_of("rfaas.quick", quick.read_text()))
    wheels = parts.wheels(python)
    for wheel in wheels:
        shutil.copytree(wheel, folder, dirs_exist_ok=True)
    licences = parts.licences(wheels)
    python_licence = Path(sysconfig.get_path("stdlib"), "LICENSE.txt")
    licences["licenses/python/LICENSE.txt"] = python_licence.read_bytes()
    for name, text in licences.items():
        target = folder / "licenses" / name.removeprefix("licenses/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text)
    rdma_libraries.stage(folder, folder / "licenses")
    (folder / "functions").mkdir()
    shutil.copy(TREE / "functions/libfunctions.so", folder / "functions")


_OF_PYEXPAT = ("ParserCreate", "ExpatError", "error", "ErrorString", "model", "errors")
_NOT_STAGED = ("*.so", "__pycache__", "*.c", "*.h", "*.pyx", "*.pxd", "*.pyi")


def freeze(output: Path) -> None:
    """The second half, run by the Python that goes in."""
    python = parts.pythons([sys.executable])[0]
    work = WORK / f"binary-{os.path.basename(output)}"
    stage(python, work / "stage")
    environ = os.environ | {
        "RFAAS_STAGE": str(work / "stage"),
        "RFAAS_TREE": str(TREE),
        "RFAAS_OUTPUT": str(output),
        "RFAAS_LOADER": str(loader(work / "loader")),
        "PYTHONPATH": os.pathsep.join((str(work / "stage"), str(WORK / "pyinstaller"))),
        "PYTHONHASHSEED": "1",  # with SOURCE_DATE_EPOCH: the same bytes twice
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYINSTALLER_CONFIG_DIR": str(work / "config"),
    }
    command = [sys.executable, "-s", "-S", "-m", "PyInstaller", "--noconfirm", "--clean"]
    command += ["--log-level", "WARN", "--distpath", str(work), "--workpath", str(work / "work")]
    # PyInstaller wants it for macOS alone, and Debian's source does not compile it outside Debian.
    (work / "pyexpat.py").write_text(f"{' = '.join(_OF_PYEXPAT)} = None\n")
    if importlib.util.find_spec("pyexpat") is None:
        environ["PYTHONPATH"] += f"{os.pathsep}{work}"
    _run([*command, str(TREE / "packaging/rfaas.spec")], work, environ)
    data = (work / output.name).read_bytes()
    numbers = (zlib.crc32(data), unpacked_bytes(work / output.name))
    data += b"RFAASCRC" + b"".join(number.to_bytes(4, "little") for number in numbers)
    digest = hashlib.sha256(data).digest()
    data += Footer(len(data), NO_PART, NO_PART, len(data) + FOOTER_BYTES, digest).encode()
    if len(data) > BYTES_MAX:
        raise BuildError(f"it would have {len(data)} bytes, at most {BYTES_MAX} are allowed")
    new = output.with_name(output.name + ".new")
    new.write_bytes(data)
    new.chmod(0o755)
    os.replace(new, output)
    parts.say(f"{output}: {len(data) / 1e6:.1f} MB, with Python {python.version}")


def main() -> int:
    """Build it; say how large it is."""
    parser = argparse.ArgumentParser(description="Build the binary.")
    parser.add_argument("--output", default="dist/rfaas-linux-x86_64", metavar="FILE")
    parser.add_argument("--python", default=os.path.realpath(sys.executable), metavar="PYTHON")
    parser.add_argument("--root", default="", metavar="DIR", help="an older system to build in")
    parser.add_argument("--freeze", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    output = TREE / options.output
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if options.freeze:
            freeze(output)
            return 0
        WORK.mkdir(parents=True, exist_ok=True)
        fetch()
        inside = [str(TREE / "packaging/old_root.sh"), options.root, str(TREE)]
        if options.root:
            probe = "import sys; print('%d.%d' % sys.version_info[:2])"
            command = [*inside, options.python, "-I", "-c", probe]
            asked = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if asked.returncode:
                return asked.returncode
            parts.wheels(Python("", asked.stdout.strip(), ""))
        else:
            parts.wheels(parts.pythons([options.python])[0])
        tree = MOUNT if options.root else str(TREE)
        command = [options.python, "-s", "-S", f"{tree}/packaging/build_binary.py", "--freeze"]
        command += ["--output", options.output]
        environ = os.environ | {"SOURCE_DATE_EPOCH": str(parts.source_date_epoch())}
        if options.root:
            command = [*inside, *command]
        return subprocess.run(command, env=environ, check=False).returncode
    except BuildError as error:
        print(f"dist: {error}", file=sys.stderr)
        return 70


if __name__ == "__main__":
    sys.exit(main())
