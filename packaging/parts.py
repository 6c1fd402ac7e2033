"""What the one-file builds are made of: Pythons, native modules for each, wheels.

Shared by build_zipapp.py and build_binary.py.  Everything lands under
build/dist and is kept there: a second build compiles and fetches only what
changed.  Run by the tree's own Python (.venv).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

TREE = Path(__file__).resolve().parent.parent
WORK = TREE / "build/dist"
VERSIONS = ("3.10", "3.11", "3.12", "3.13")  # requires-python, as far as wheels are pinned for it
# Pinned in pyproject.toml; tomli where there is no tomllib.
CARRIED = ("h11", "microdot", "msgpack", "msgspec")
# Of microdot's modules, those that nothing of ours imports.
UNUSED = """
    asgi auth cors csrf helpers jinja login multipart session sse test_client utemplate websocket
    wsgi
""".split()  # noqa: SIM905 - as one reads it
PURE = ("h11", "microdot", "tomli")  # the same for every version of Python
PAGE = "rfaas/web/page"  # files that are served as they are, beside a module
TOMLI = "tomli"
# rdma-core's own Python modules, for the one Python that this machine's Debian builds them for:
# those that ours import.  It takes libibverbs of rdma-core 34 to 56; a node's own is preferred.
PYVERBS = (
    *("__init__", "addr", "base", "cmid", "cq", "device", "dmabuf", "enums", "flow", "mr", "pd"),
    *("pyverbs_error", "qp", "srq", "utils", "wq", "wr", "xrcd"),
)
PYVERBS_FOLDER = Path("/usr/lib/python3/dist-packages/pyverbs")
PYVERBS_METADATA = """\
Name: pyverbs
Version: {version}
Summary: Python bindings for rdma-core
License-Expression: GPL-2.0-only OR Linux-OpenIB
"""
PT_LOAD, PT_DYNAMIC = 1, 2  # elf(5)
DT_NEEDED, DT_STRTAB = 1, 5
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")
# msgpack's own, in Python, for Pythons without the other; of microdot what nothing of ours imports.
DROPPED = ("fallback.py", "_cmsgpack.c", *(f"{name}.py" for name in UNUSED))
FOR_TESTS = ("rfaas.native._wire",)  # modules of ours that are not carried
LICENCE_NAME = re.compile("licen[cs]e|copying|copyright|notice|author", re.IGNORECASE)
LINK_FLAGS = "-Wl,--build-id=none,-z,noseparate-code"  # no id, no padding: 8 kB a module
# Nothing unwinds the stack of these modules: 6 % of each.
COMPILE_FLAGS = "-fno-asynchronous-unwind-tables"
# Headers and libraries of an older system, such as the tree of packaging/old_root.sh: what is
# compiled against its glibc runs with that one and all newer ones.
SYSROOT = os.environ.get("RFAAS_SYSROOT", "")


class BuildError(Exception):
    """The build cannot go on; the message says why."""


class Python(NamedTuple):
    """An interpreter that modules are built for."""

    path: str
    version: str  # 3.11
    suffix: str  # .cpython-311-x86_64-linux-gnu.so

    @property
    def tag(self) -> str:
        """cp311: as wheels call it, and its folder in the zipapp."""
        return "cp" + self.version.replace(".", "")


def say(text: str) -> None:
    """One line of progress."""
    print(f"dist: {text}", flush=True)


def pythons(wanted: list[str]) -> list[Python]:
    """The interpreters named, or all there are: one for each version, the tree's first."""
    found: dict[str, Python] = {}
    candidates = wanted or [
        sys.executable,
        *(shutil.which(f"python{version}") or "" for version in VERSIONS),
        "/usr/bin/python3",
        *sorted(glob(os.path.join(os.environ.get("PYENV_ROOT", ""), "versions/3.*/bin/python3"))),
    ]
    for candidate in filter(None, candidates):
        path = shutil.which(candidate) or candidate
        python = _asked(path)
        if python is None:
            if wanted:
                raise BuildError(
                    f"{candidate} is no CPython {VERSIONS[0]} to {VERSIONS[-1]} with headers"
                )
            continue
        found.setdefault(python.suffix, python)
    return sorted(found.values(), key=lambda python: VERSIONS.index(python.version))


def _asked(path: str) -> Python | None:
    probe = (
        "import sys, _imp, sysconfig, os; print('%d.%d' % sys.version_info[:2], "
        "_imp.extension_suffixes()[0], os.path.exists(sysconfig.get_path('include') + '/Python.h'),"
        "sys.implementation.name)"
    )
    try:
        run = subprocess.run([path, "-I", "-c", probe], capture_output=True, text=True, check=True)
        version, suffix, headers, kind = run.stdout.split()
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None
    usable = headers == "True" and kind == "cpython" and version in VERSIONS
    return Python(path, version, suffix) if usable else None


def native_modules(python: Python) -> dict[str, Path]:
    """Our native modules for `python`, stripped, by module name; built if need be.

    The same sources give the same bytes, wherever the tree lies: sources are named
    relative to it, what debuggers read is stripped, and the linker's build id, a hash of
    what was there before, left out.
    """
    sources = [
        TREE / "setup.py",
        *sorted((TREE / "rfaas/native").glob("*.[ch]")),
        *sorted((TREE / "rfaas/native").glob("*.p[yx][xd]")),
        *sorted((TREE / "rfaas/bench").glob("*.[ch]")),
    ]
    state = hashlib.sha256(f"{python[1:]} {_compiler()} {COMPILE_FLAGS} {LINK_FLAGS}".encode())
    for source in sources:
        state.update(source.name.encode() + source.read_bytes())
    # In --root another compiler builds for the same Python: each keeps its own.
    folder = (
        WORK / f"{python.tag}-{hashlib.sha256((_compiler() + SYSROOT).encode()).hexdigest()[:8]}"
    )
    mark = folder / "built"
    WORK.mkdir(parents=True, exist_ok=True)
    with (WORK / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two builds in one tree: the second finds what it needs
        _compile_once(python, folder, mark, state.hexdigest())
    found = {
        ".".join(file.relative_to(folder / "lib").parts).removesuffix(python.suffix): file
        for file in sorted((folder / "lib").rglob("*.so"))
    }
    return {name: file for name, file in found.items() if name not in FOR_TESTS}


def _compile_once(python: Python, folder: Path, mark: Path, state: str) -> None:
    if not (mark.exists() and mark.read_text() == state):
        say(f"compiling the native modules for Python {python.version}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _compile(python, folder)
        mark.write_text(state)


def _compiler() -> str:
    command = [os.environ.get("CC", "cc"), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _compile(python: Python, folder: Path) -> None:
    flags = COMPILE_FLAGS
    link_flags = LINK_FLAGS
    if SYSROOT:
        flags += f" --sysroot={SYSROOT}"
        # gcc's own folders, with this system's glibc, come first otherwise; setup.py drops -L.
        link_flags += f" --sysroot={SYSROOT} -B{SYSROOT}/usr/lib/x86_64-linux-gnu"
    environ = os.environ | {
        # Cython and setuptools are Python code: the tree's serve every version.
        "PYTHONPATH": str(site_packages()),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CFLAGS": f"{os.environ.get('CFLAGS', '')} {flags}".strip(),
        "LDFLAGS": f"{os.environ.get('LDFLAGS', '')} {link_flags}".strip(),
    }
    command = [python.path, "-S", "setup.py", "-q", "build_ext", "--force", "--parallel", "2"]
    command += ["--build-lib", str(folder / "lib"), "--build-temp", str(folder / "temp")]
    run = subprocess.run(
        command, cwd=TREE, env=environ, capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise BuildError(
            f"the native modules do not compile for Python {python.version}:\n"
            + (run.stdout + run.stderr)[-4000:]
        )
    strip(folder / "lib")
    shutil.rmtree(folder / "temp", ignore_errors=True)


def strip(folder: Path) -> None:
    """Take out what only debuggers read, of all native modules there."""
    for file in sorted(folder.rglob("*.so*")):
        subprocess.run(
            ["strip", "--strip-unneeded", "--remove-section=.comment", str(file)], check=True
        )


def site_packages() -> Path:
    """Where the tree's own packages are."""
    return next(TREE.glob(".venv/lib/python3.*/site-packages"))


def wheels(python: Python) -> list[Path]:
    """The wheels that the program carries for `python`, unpacked: one folder each."""
    wanted = [f"{name}=={_pinned(name)}" for name in CARRIED]
    if python.version == "3.10":
        wanted.append(f"{TOMLI}=={_pinned(TOMLI)}")
    folders = [_wheel(python, requirement) for requirement in wanted]
    return folders + ([pyverbs] if (pyverbs := _pyverbs(python)) else [])


def _pyverbs(python: Python) -> Path | None:
    """This machine's pyverbs, laid out as a wheel's folder; None where it has none for `python`."""
    if not (PYVERBS_FOLDER / f"enums{python.suffix}").exists():
        return None
    command = ["dpkg-query", "-W", "-f", "${Version}", "python3-pyverbs"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise BuildError(f"no package python3-pyverbs, and yet {PYVERBS_FOLDER}: {run.stderr}")
    version = run.stdout.rpartition("-")[0]
    folder = WORK / "wheels" / f"pyverbs-{version}-{python.tag}"
    if folder.exists():
        return folder
    say(f"taking pyverbs {version} for Python {python.version} from this machine")
    new = folder.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    (new / "pyverbs").mkdir(parents=True)
    for name in PYVERBS:
        suffix = ".py" if (PYVERBS_FOLDER / f"{name}.py").exists() else python.suffix
        shutil.copy(PYVERBS_FOLDER / f"{name}{suffix}", new / "pyverbs")
    with (new / "pyverbs/__init__.py").open("a") as file:
        file.write(f'__version__ = "{version}"\n')
    info = new / f"pyverbs-{version}.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(PYVERBS_METADATA.format(version=version))
    shutil.copy("/usr/share/doc/python3-pyverbs/copyright", info / "copyright")
    strip(new)
    for file in (new / "pyverbs").glob("*.so"):
        file.write_bytes(_without_libpython(file.read_bytes()))
    new.rename(folder)
    return folder


def _without_libpython(data: bytes) -> bytes:
    """An ELF file less its need of libpython, which Debian's own Python does without."""
    programs, entry_bytes, count = (
        *struct.unpack_from("<Q", data, 32),  # elf(5): e_phoff, e_phentsize, e_phnum
        *struct.unpack_from("<HH", data, 54),
    )
    segments = [
        struct.unpack_from("<IIQQQQQQ", data, programs + n * entry_bytes) for n in range(count)
    ]
    (dynamic,) = (one for one in segments if one[0] == PT_DYNAMIC)
    start, size = dynamic[2], dynamic[5]
    entries = [struct.unpack_from("<QQ", data, at) for at in range(start, start + size, 16)]
    (strings,) = (value for tag, value in entries if tag == DT_STRTAB)
    (base,) = (p[2] - p[3] for p in segments if p[0] == PT_LOAD and 0 <= strings - p[3] < p[5])
    kept = [
        (tag, value)
        for tag, value in entries
        if tag != DT_NEEDED or not data.startswith(b"libpython", base + strings + value)
    ]
    kept += [(0, 0)] * (len(entries) - len(kept))  # DT_NULL
    table = b"".join(struct.pack("<QQ", *entry) for entry in kept)
    return data[:start] + table + data[start + size :]


def _pinned(name: str) -> str:
    text = (TREE / "pyproject.toml").read_text()
    match = re.search(rf'"{name}==([0-9.]+)', text)
    if not match:
        raise BuildError(f"pyproject.toml pins no version of {name}")
    return match[1]


def _wheel(python: Python, requirement: str) -> Path:
    folder = WORK / "wheels" / f"{requirement.replace('==', '-')}-{python.tag}"
    if folder.exists():
        return folder
    say(f"fetching {requirement} for Python {python.version}")
    download = WORK / "wheels" / "download"
    shutil.rmtree(download, ignore_errors=True)
    command = [sys.executable, "-I", "-m", "pip", "download", "-q", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "-d", str(download)]
    if requirement.startswith(PURE):
        command += ["--python-version", python.version, "--platform", "any"]  # not the compiled one
    else:
        command += ["--python-version", python.version, "--implementation", "cp"]
        command += ["--abi", python.tag]
        command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    run = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
    if run.returncode:
        raise BuildError(f"cannot fetch {requirement} for Python {python.version}:\n{run.stderr}")
    (file,) = download.glob("*.whl")
    new = folder.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    with zipfile.ZipFile(file) as wheel:
        wheel.extractall(new)
    strip(new)  # msgpack's has 1.5 MB of debugging information
    new.rename(folder)
    shutil.rmtree(download)
    return folder


def page_files() -> list[str]:
    """What the web serves, by path in the tree."""
    files = sorted(file.name for file in (TREE / PAGE).iterdir())
    return [f"{PAGE}/{name}" for name in files if name.endswith((".css", ".html", ".js"))]


def licences(folders: list[Path]) -> dict[str, bytes]:
    """Ours and those of all that is carried, by the name in the program."""
    found = {"LICENSE": (TREE / "LICENSE").read_bytes()}
    for folder in folders:
        for info in folder.glob("*.dist-info"):
            name = info.name.removesuffix(".dist-info")
            texts = [file for file in sorted(info.rglob("*")) if file.is_file()]
            own = [file for file in texts if LICENCE_NAME.search(file.name)]
            if not own:
                raise BuildError(f"{name} brings no licence")
            found.update({f"licenses/{name}/{file.name}": file.read_bytes() for file in own})
    return found


def source_date_epoch() -> int:
    """The time that all files of a build get: the commit's, or SOURCE_DATE_EPOCH."""
    if text := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(text)
    command = ["git", "-C", str(TREE), "log", "-1", "--format=%ct"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(run.stdout) if run.returncode == 0 and run.stdout.strip() else 315532800  # 1980


def version() -> str:
    """rfaas.__version__."""
    match = re.search(
        r'^__version__ = "(.+)"', (TREE / "rfaas/__init__.py").read_text(), re.MULTILINE
    )
    assert match
    return match[1]


def ask(python: Python, script: str, question: object) -> Any:
    """Run a script under `python`: JSON in, JSON out."""
    run = subprocess.run(
        # Columns are of use beside the source alone, which is not carried: a third of the code.
        [python.path, "-s", "-S", "-X", "no_debug_ranges", script],
        input=json.dumps(question).encode(),
        env={"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        check=False,
    )
    if run.returncode:
        raise BuildError(f"{python.path} {script} failed:\n{run.stderr.decode()}")
    return json.loads(run.stdout)
