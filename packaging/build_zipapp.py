"""Builds dist/rfaas: a shell script and a zip in one file, for nodes with Python.

    .venv/bin/python packaging/build_zipapp.py [--output FILE] [PYTHON ...]

Layout, in the order of the file; what calls and roles use is stored, so that it is in
the file as it is used, and everything else (not in HOT) is deflated:

    header                        boot/header.sh: picks a Python, which runs boot/boot.py
    __main__.py                   for `python3 dist/rfaas`
    LICENSE, licenses/, etc/, functions/libfunctions.so
    rfaas/admin/pack.py           what is SHARED: source, for all versions (lean.bare)
    cp311/rfaas/native/_calls.so  native modules, for each version of Python
    cp311/rfaas/roles/executor.pyc code that calls do not use
    cp311/...                     the code of that version, read and checked in one piece:
        rfaas-boot.pyc            boot/finder.py, the first to run
        rfaas/cli.pyc ...         UNCHECKED_HASH
        rfaas-index               where every module is (marshal)
    the zip's directory; its comment is the footer of rfaas/launch/embedded.py

The header has a line for each version: which piece, and its check.
"""

from __future__ import annotations

import argparse
import binascii
import hashlib
import marshal
import os
import re
import struct
import sys
import tempfile
import time
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # -I leaves it out
sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
import lean
import parts
from parts import TREE, WORK, BuildError, Python

from rfaas.launch.embedded import FOOTER_BYTES, NO_PART, Footer

BOOT = TREE / "packaging/boot"
BINARY = "rfaas-linux-x86_64"
# What `ps` shows between the interpreter and the file: runs boot/boot.py out of the header.
RUN = 'import sys; exec(open(sys.argv[1], "rb").read(4096).split(b"\\n#|\\n")[1])'
# For `python3 rfaas`: the same Python again, isolated, as the header would run it.
MAIN = f"""import os, sys
file = os.path.abspath(__loader__.archive)
os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", {RUN!r}, file] + sys.argv[1:])
"""
PACKAGE, MODULE, NATIVE, DATA = range(4)  # boot/finder.py
COLD = 4  # likewise
SOURCE = 8  # likewise
# What every `rfaas call`, and every role up to its main, imports: tests/packaging/test_start.py
# holds this to it.  msgpack's native part is deflated for its size: 0.6 ms for half a megabyte.
# Also hot is all that lies in rfaas/ itself, but for what plain lines do without: the parser.
HOT = re.compile(
    r"""rfaas-(boot|cache) | rfaas(\.(?!commands$)\w+)? | rfaas\.client(\.(?!wide$)\w+)?
    | rfaas\.roles\.client
    | rfaas\.control\.(carrier|ends|link|sockets) | rfaas\.launch\.(embedded|local|service|zygote)
    | rfaas\.native\._(calls|window) | rfaas\.proto\.(codec|messages|proof|wire|worker_messages)
    | rfaas\.transport\.(ring|shm)
    | msgpack(\.(exceptions|ext))? | msgspec(\.(_core|_utils|json|msgpack|structs|_version))?""",
    re.VERBOSE,
)
# Carried as source, once for all versions: it is compiled when it is imported, which takes
# some milliseconds and not for a call or the way into a role.
SHARED = re.compile(
    r"""(h11|microdot|rfaas\.(admin|bench|sandbox\.engines))(\..+)?
    | rfaas\.diagnose\.(checks|command|containers|facts|hosts|rdma_core|records|report)
    | rfaas\.launch\.(images|unpack) | rfaas\.sandbox\.container
    | rfaas\.web\.(access|metrics|openapi|site)
    | msgspec\.(inspect|_json_schema)""",
    re.VERBOSE,
)
PYC_HEADER_BYTES = 16  # PEP 552
HEADER_BYTES_MAX = 4096  # boot/boot.py reads so much
BYTES_MAX = 8 << 20
LOCAL = struct.Struct("<4s5H3L2H")  # APPNOTE 4.3.7
CENTRAL = struct.Struct("<4s6H3L5H2L")  # 4.3.12
END = struct.Struct("<4s4H2LH")  # 4.3.16


class Zip:
    """A file that grows, and the zip in it: fixed modes and times."""

    def __init__(self, epoch: int) -> None:
        self.data = bytearray()
        self._directory = bytearray()
        self._count = 0
        t = time.gmtime(max(epoch, 315532800))  # a zip knows no year before 1980
        self._time = t.tm_hour << 11 | t.tm_min << 5 | t.tm_sec // 2
        self._date = t.tm_year - 1980 << 9 | t.tm_mon << 5 | t.tm_mday

    def add(self, name: str, content: bytes) -> int:
        """Append a stored member; returns where its content begins."""
        return self._add(name, content, content, 0)

    def add_deflated(self, name: str, content: bytes) -> tuple[int, bytes]:
        """Append a deflated one; returns where it begins, and what is there."""
        press = zlib.compressobj(9, wbits=-15, memLevel=9)
        deflated = press.compress(content) + press.flush()
        return self._add(name, content, deflated, 8), deflated

    def _add(self, name: str, content: bytes, stored: bytes, method: int) -> int:
        offset, encoded, crc = len(self.data), name.encode(), binascii.crc32(content)
        sizes = (len(stored), len(content))
        version = 20 if method else 10  # that can read it
        common = (version, 0, method, self._time, self._date, crc, *sizes, len(encoded), 0)
        self.data += LOCAL.pack(b"PK\3\4", *common) + encoded
        at = len(self.data)
        self.data += stored
        mode = 0o100644 << 16
        self._directory += CENTRAL.pack(b"PK\1\2", 0x0314, *common, 0, 0, 0, mode, offset) + encoded
        self._count += 1
        return at

    def close(self, comment_bytes: int) -> None:
        """Append the directory; a comment of that size must follow."""
        offset, size = len(self.data), len(self._directory)
        self.data += self._directory
        self.data += END.pack(
            b"PK\5\6", 0, 0, self._count, self._count, size, offset, comment_bytes
        )


def build(pythons: list[Python], epoch: int) -> bytes:
    """The whole file."""
    archive = Zip(epoch)
    archive.data += bytes(len(header(pythons, {})))
    archive.add("__main__.py", MAIN.encode())
    data = {name: archive.add_deflated(name, c) for name, c in data_files(pythons).items()}
    shared = add_shared(archive, pythons[0])
    rows = {python: add_version(archive, python, data, shared) for python in pythons}
    head = header(pythons, rows)
    archive.data[: len(head)] = head
    base = len(archive.data)
    archive.close(FOOTER_BYTES)
    digest = hashlib.sha256(archive.data).digest()
    footer = Footer(base, NO_PART, NO_PART, len(archive.data) + FOOTER_BYTES, digest)
    return bytes(archive.data) + footer.encode()


def header(pythons: list[Python], rows: dict[Python, tuple[int, int, str, int]]) -> bytes:
    """The shell script; of the same length with and without `rows`."""
    newest_first = [python.version for python in reversed(pythons)]
    lines = ["#= " + " ".join(newest_first)]
    for python in pythons:
        start, size, check, index = rows.get(python, (0, 0, "0" * 16, 0))
        lines.append(f"#: {python.suffix} {start:08} {size:08} {check} {index:08}")
    text = (BOOT / "header.sh").read_text()
    for mark, value in {
        "@VERSION@": parts.version(),
        "@TABLE@": "\n".join(lines),
        "@BOOT@": _code_of("boot.py").replace('"@RUN@"', repr(RUN)),
        "@REFUSE@": _code_of("refuse.py"),
        "@NAMES@": " ".join(f"python{version}" for version in newest_first),
        "@WANTED@": ", ".join(newest_first),
        "@BINARY@": BINARY,
        "@RUN@": RUN,
    }.items():
        text = text.replace(mark, value)
    if len(text) > HEADER_BYTES_MAX:
        raise BuildError(f"the header has {len(text)} bytes, at most {HEADER_BYTES_MAX} are read")
    return text.encode()


def _code_of(name: str) -> str:
    return (BOOT / name).read_text().rpartition('"""\n')[2].strip("\n")


def data_files(pythons: list[Python]) -> dict[str, bytes]:
    """What is carried beside code, once for all versions."""
    folders = {wheel.name.rsplit("-", 1)[0]: wheel for p in pythons for wheel in parts.wheels(p)}
    found = parts.licences([folders[name] for name in sorted(folders)])
    for name in ("etc/rfaas.toml", "functions/libfunctions.so", *parts.page_files()):
        found[name] = (TREE / name).read_bytes()
    return dict(sorted(found.items()))


def add_shared(archive: Zip, python: Python) -> dict[str, tuple[int, bytes]]:
    """The sources that all versions share: where each begins, and what is there, by module."""
    code, _ = modules(python)
    return {
        name: archive.add_deflated(shown, lean.bare(Path(source).read_text()).encode())
        for name, (source, shown) in sorted(code.items())
        if SHARED.fullmatch(name)
    }


def add_version(
    archive: Zip,
    python: Python,
    data: dict[str, tuple[int, bytes]],
    shared: dict[str, tuple[int, bytes]],
) -> tuple[int, int, str, int]:
    """One Python's modules; returns where their code is: offset, size, check, the index in it."""
    code, natives = modules(python)
    compiled = compile_all(python, {name: code[name] for name in code.keys() - shared.keys()})
    kinds = dict.fromkeys(natives, NATIVE)
    for name, (source, _) in code.items():
        kinds[name] = PACKAGE if source.endswith("/__init__.py") else MODULE
    members = {name: _member(python, name, kind) for name, kind in kinds.items()}

    # name: kind, offset in the file, what is there
    placed = {name: (SOURCE | COLD | DATA, at, content) for name, (at, content) in data.items()}
    for name, (at, content) in shared.items():
        placed[name] = (SOURCE | COLD | kinds[name], at, content)
    for name in sorted(kinds.keys() - shared.keys()):
        content = compiled[name] if name in compiled else natives[name].read_bytes()
        if not is_hot(name):
            at, content = archive.add_deflated(members[name], content)
            placed[name] = (COLD | kinds[name], at, content)
        elif name in natives:
            placed[name] = (NATIVE, archive.add(members[name], content), content)
    checks = checks_of(python, {name: content for name, (_, _, content) in placed.items()})
    index = {
        name: (kind, at, len(content), checks[name]) for name, (kind, at, content) in placed.items()
    }
    boot = archive.add(f"{python.tag}/rfaas-boot.pyc", compiled.pop("rfaas-boot"))
    start = boot + PYC_HEADER_BYTES
    for name in sorted(compiled.keys() - placed.keys()):
        at = archive.add(members[name], compiled[name]) + PYC_HEADER_BYTES - start
        index[name] = (kinds[name], at, len(compiled[name]) - PYC_HEADER_BYTES, b"")
    index_at = archive.add(f"{python.tag}/rfaas-index", marshal.dumps(index, 2)) - start
    piece = bytes(archive.data[start:])
    return start, len(piece), checks_of(python, {"piece": piece})["piece"].hex(), index_at


def is_hot(name: str) -> bool:
    """Whether starts use the module, so that it is kept as it is used."""
    return HOT.fullmatch(name) is not None


def _member(python: Python, name: str, kind: int) -> str:
    suffix = {PACKAGE: "/__init__.pyc", MODULE: ".pyc", NATIVE: ".so"}[kind]
    return f"{python.tag}/{name.replace('.', '/')}{suffix}"


def compile_all(python: Python, code: dict[str, list[str]]) -> dict[str, bytes]:
    """The .pyc of each module."""
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        for name, (source, shown) in code.items():
            text = Path(source).read_text()
            if (changed := lean.source_of(name, text)) != text:
                Path(folder, f"{name}.py").write_text(changed)
                code = code | {name: [f"{folder}/{name}.py", shown]}
        question = {"code": code, "checked": {}, "out": folder}
        parts.ask(python, str(BOOT / "compile.py"), question)
        return {name: Path(folder, f"{name}.pyc").read_bytes() for name in code}


def checks_of(python: Python, contents: dict[str, bytes]) -> dict[str, bytes]:
    """The check of each, as that Python calculates it."""
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        files = {name: f"{folder}/{number}" for number, name in enumerate(contents)}
        for name, content in contents.items():
            Path(files[name]).write_bytes(content)
        question = {"code": {}, "checked": files, "out": folder}
        answer = parts.ask(python, str(BOOT / "compile.py"), question)
    return {name: bytes.fromhex(text) for name, text in answer["checks"].items()}


def modules(python: Python) -> tuple[dict[str, list[str]], dict[str, Path]]:
    """Python modules (source, name in tracebacks) and native ones, by module name."""
    natives = parts.native_modules(python)
    code = {
        "rfaas-boot": [str(BOOT / "finder.py"), "rfaas-boot.py"],
        "rfaas-cache": [str(BOOT / "cache.py"), "rfaas-cache.py"],
    }
    for file in sorted((TREE / "rfaas").rglob("*.py")):
        name, shown = _named(file, TREE)
        code[name] = [str(file), shown]
    for folder in parts.wheels(python):
        for file in sorted(folder.rglob("*")):
            if file.name.endswith(python.suffix):
                name = ".".join(file.relative_to(folder).parts).removesuffix(python.suffix)
                natives[name] = file
            elif file.name.endswith(".py") and file.name not in parts.DROPPED:
                name, shown = _named(file, folder)
                code[name] = [str(file), shown]
    return code, dict(sorted(natives.items()))


def _named(file: Path, root: Path) -> tuple[str, str]:
    relative = file.relative_to(root)
    name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
    return name, str(relative)


def main() -> int:
    """Build it; say how large it is."""
    parser = argparse.ArgumentParser(description="Build dist/rfaas.")
    parser.add_argument("--output", default=str(TREE / "dist/rfaas"), metavar="FILE")
    parser.add_argument("pythons", nargs="*", metavar="PYTHON", help="default: all there are")
    options = parser.parse_args()
    try:
        WORK.mkdir(parents=True, exist_ok=True)
        pythons = parts.pythons(options.pythons)
        content = build(pythons, parts.source_date_epoch())
        if len(content) > BYTES_MAX:
            raise BuildError(f"it would have {len(content)} bytes, at most {BYTES_MAX} are allowed")
    except BuildError as error:
        print(f"dist: {error}", file=sys.stderr)
        return 70
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    new = output.with_name(output.name + ".new")
    new.write_bytes(content)
    new.chmod(0o755)
    os.replace(new, output)  # who runs the old one keeps it
    versions = ", ".join(python.version for python in pythons)
    parts.say(f"{options.output}: {len(content) / 1e6:.1f} MB, for Python {versions}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
