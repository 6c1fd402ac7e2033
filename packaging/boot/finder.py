"""The importer of the one-file program: code from memory, native modules from memory files.

The Python code that calls and roles run was read and checked as one piece, so what
is imported later is what was checked, also when the file is replaced meanwhile or
cannot be seen from inside a sandbox.  Native modules are read from the file when
they are imported, each with a check of its own; so is what few starts use, which is
deflated as well.

Runs before anything is imported, so it uses only what is built into every
Python.  A zip's own importer would cost 3 ms more and loads no native modules.
"""

import _imp
import marshal
import sys
from _frozen_importlib import ModuleSpec

MFD_CLOEXEC = 0x1  # memfd_create(2)
MFD_NOEXEC_SEAL = 0x8  # may be mapped, not run: also where vm.memfd_noexec is 2; Linux 6.3
PACKAGE, MODULE, NATIVE, DATA = range(4)
COLD = 4  # beside another: a deflated member of its own
SOURCE = 8  # beside COLD: what all versions of Python share, for a module its source
KIND = 3  # without these
PYC_HEADER_BYTES = 16  # PEP 552
EX_UNAVAILABLE = 69
LACKS_LIBRARY = ": cannot open shared object file"  # dlerror(3), after the library's name
# New objects between collections.  What a start makes stays; to look at it every 700 objects,
# as Python does, takes 5 % of it.
GC_THRESHOLD = 20_000


class DamagedFileError(Exception):
    """The program's file is no longer what was built; no ImportError, which some code expects."""


class Importer:
    """Finder and loader of everything in the file.

    `index` has by name: kind, offset, size, check, where an offset of code that is not
    cold is one in `code`, without a check, and any other is one in the file.
    """

    def __init__(self, path, code, index, boot):
        self.one_file = path
        # What runs this file again, in the same Python: rfaas/launch/local.py.
        self.command = [sys.executable, "-I", "-S", "-c", boot, path]
        self._code = memoryview(code)
        self._index = index
        self._loaded = 0
        self._kept = []  # pieces of the file, each with where it begins

    def keep(self):
        """Read all modules now: a role lives longer than its file may stay as it is."""
        import zlib  # noqa: F401 - for later, where the standard library cannot be seen

        for shared in (0, SOURCE):  # each kind lies together
            places = [
                (offset, offset + size)
                for kind, offset, size, _ in self._index.values()
                if (kind == NATIVE or kind & COLD) and kind & SOURCE == shared
            ]
            at, end = min(place[0] for place in places), max(place[1] for place in places)
            self._kept.append((at, memoryview(self._bytes("modules", at, end - at))))

    def find_spec(self, name, path=None, target=None):
        """What `sys.meta_path` asks."""
        found = self._index.get(name)
        if found is None:
            return None
        if path and not path[0].startswith(self.one_file):
            return None  # of a package that was found elsewhere: a node's own pyverbs
        kind = found[0] & KIND
        place = self.one_file + "/" + name.replace(".", "/")
        if kind == PACKAGE:
            spec = ModuleSpec(name, self, origin=place + "/__init__.py", is_package=True)
            spec.submodule_search_locations.append(place)
        else:
            spec = ModuleSpec(name, self, origin=place + (".py" if kind == MODULE else ".so"))
        spec.has_location = True
        return spec

    def create_module(self, spec):
        """A native module is made by its library, any other by Python."""
        kind, offset, size, check = self._index[spec.name]
        if kind & KIND != NATIVE:
            return None
        data = self._read(spec.name, offset, size, check)
        if kind & COLD:
            data = self._inflated(spec.name, data)
        try:
            return self._from_memory(spec.name, data)
        except DamagedFileError:
            raise
        except (OSError, ImportError, AttributeError) as error:
            if LACKS_LIBRARY in str(error) and not str(error).startswith("/"):
                raise  # one that it is linked to, such as libibverbs: no other place helps
            # No /proc, memory files or mapping them forbidden, Python without memfd_create.
            return self._from_cache(spec.name, data, error)

    def exec_module(self, module):
        """Run a module's code."""
        code = self.get_code(module.__name__)
        if code is not None:
            exec(code, module.__dict__)
        else:
            module.__file__ = module.__spec__.origin
            _imp.exec_dynamic(module)

    def is_package(self, name):
        """Whether the module has others in it."""
        return self._index[name][0] & KIND == PACKAGE

    def get_code(self, name):
        """A module's code, None for a native one."""
        kind, offset, size, check = self._index[name]
        if kind in (PACKAGE, MODULE):
            return marshal.loads(self._code[offset:])
        if kind & KIND == NATIVE:
            return None
        data = self._inflated(name, self._read(name, offset, size, check))
        if kind & SOURCE:
            place = name.replace(".", "/") + ("/__init__.py" if kind & KIND == PACKAGE else ".py")
            return compile(data, place, "exec", dont_inherit=True)
        return marshal.loads(memoryview(data)[PYC_HEADER_BYTES:])

    def get_source(self, name):
        """Nothing: sources are not carried."""

    def get_data(self, path):
        """A file that is carried beside the code, by "<this file>/<its path>"."""
        name = path[len(self.one_file) + 1 :] if path.startswith(self.one_file + "/") else path
        found = self._index.get(name) or self._index.get(name[:-3].replace("/", "."))
        if found is None or found[0] & KIND not in (NATIVE, DATA):
            raise FileNotFoundError(2, "not carried in this file", path)
        data = self._read(name, *found[1:])
        return self._inflated(name, data) if found[0] & COLD else data

    def _read(self, name, offset, size, check):
        for at, piece in self._kept:
            if at <= offset < at + len(piece):
                data = piece[offset - at : offset - at + size]
                break
        else:
            data = self._bytes(name, offset, size)
        if len(data) != size or _imp.source_hash(0, data) != check:
            raise DamagedFileError(
                f"{self.one_file} is damaged: {name} was cut off or altered\nhint: copy it again"
            )
        return data

    def _inflated(self, name, data):
        try:
            from zlib import decompress
        except ImportError:
            sys.stderr.write(
                f"rfaas: {name} is deflated, and {sys.executable} has no module zlib\n"
                "hint: name another Python with RFAAS_PYTHON, or use rfaas-linux-x86_64\n"
            )
            sys.exit(EX_UNAVAILABLE)
        return decompress(data, -15)

    def _bytes(self, name, offset, size):
        try:
            with open(self.one_file, "rb", 0) as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            text = f"{self.one_file}: cannot read {name}: {error.strerror}"
            raise DamagedFileError(text) from None

    def _from_memory(self, name, data):
        import posix

        try:
            fd = posix.memfd_create("rfaas:" + name, MFD_CLOEXEC | MFD_NOEXEC_SEAL)
        except OSError:  # an older Linux
            fd = posix.memfd_create("rfaas:" + name, MFD_CLOEXEC)
        try:
            if posix.write(fd, data) != len(data):
                raise OSError("memory file cut off")
            self._loaded += 1
            # dlopen(3) takes a name that it knows for the library it knows: no two are the same.
            return self._dynamic(name, f"/proc/self/fd/{'./' * self._loaded}{fd}")
        finally:
            posix.close(fd)

    def _from_cache(self, name, data, error):
        # Called only where memory files cannot be used, so that its code is not read before.
        found = {"__name__": "rfaas-cache"}
        exec(marshal.loads(self._code[self._index["rfaas-cache"][1] :]), found)
        return found["load"](name, data, self._dynamic, error)

    def _dynamic(self, name, path):
        return _imp.create_dynamic(ModuleSpec(name, self, origin=path))


def run(path, code, index_at, boot):
    """Import and run the command line; ends the process."""
    path = path.removeprefix("./")
    if not path.startswith("/"):
        import posix

        path = posix.getcwd() + "/" + path
    index = marshal.loads(memoryview(code)[index_at:])
    importer = Importer(path, code, index, boot)
    sys.meta_path.insert(0, importer)
    import gc

    gc.set_threshold(GC_THRESHOLD)
    sys.argv[:] = sys.argv[1:]
    try:
        from rfaas.cli import main

        status = main()
    except DamagedFileError as error:
        sys.stderr.write(f"rfaas: {error}\n")
        status = 65
    except SystemExit as error:  # argparse's, after --help
        if not isinstance(error.code, int):
            raise
        status = error.code
    leave(status)


def leave(status):
    """End the process: what an interpreter does at its end, less freeing all memory (3 ms)."""
    import atexit
    import posix

    threading = sys.modules.get("threading")
    if threading is not None:
        threading._shutdown()  # waits for threads that are no daemons
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (
        OSError,
        ValueError,
        AttributeError,
    ):  # closed, or its reader is: Python knows what to do
        sys.exit(status)
    posix._exit(status)
