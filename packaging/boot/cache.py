"""Native modules in a directory, for machines that load none from memory.

Files are named by their content and appear by a rename, so that any number of
processes may start at once: each finds a whole file or writes one.  A file is
compared with what it should hold before it is loaded: what a full disk or
another user left there is never used.
"""

import _imp
import os
import sys


def load(name, data, load_from, reason):
    """The native module `name`, whose library is `data`, by `load_from(name, path)`."""
    if "GLIBC_" in str(reason):
        wanted = str(reason).partition("`")[2].partition("'")[0]
        sys.stderr.write(
            f"rfaas: {name} needs {wanted}, and this machine's C library is older\n"
            "hint: use rfaas-linux-x86_64, or build with `make dist ROOT=DIR`\n"
        )
        sys.exit(69)  # EX_UNAVAILABLE
    file = f"{name}-{_imp.source_hash(0, data).hex()}.so"
    refused = []
    for folder in folders():
        try:
            make_private(folder)
            path = os.path.join(folder, file)
            is_new = not holds(path, data)
            if is_new:
                write(path, data)
            try:
                return load_from(name, path)
            except ImportError:
                if is_new:
                    os.unlink(path)  # a noexec file system, say: nothing for later either
                raise
        except (OSError, ImportError) as error:
            text = str(error) if isinstance(error, ImportError) else error.strerror
            refused.append(f"{folder}: {text}")
    lines = "".join(f"\n  {line}" for line in dict.fromkeys(refused))
    sys.stderr.write(
        f"rfaas: cannot load {name} from memory ({reason}), nor from a directory:{lines}\n"
        "hint: set XDG_CACHE_HOME to a directory of your own that is on a file system with "
        "some MB free, not mounted noexec, and where programs may be run\n"
    )
    sys.exit(71)  # EX_OSERR


def folders():
    """Where to look and write, in order; nothing that another user could have made."""
    user = os.geteuid()
    environ = os.environ.get
    for base, name in (
        (environ("XDG_CACHE_HOME"), "rfaas"),
        (environ("HOME"), ".cache/rfaas"),
        (environ("XDG_RUNTIME_DIR"), "rfaas-cache"),
        (environ("TMPDIR"), f"rfaas-cache-{user}"),
        ("/tmp", f"rfaas-cache-{user}"),
        ("/var/tmp", f"rfaas-cache-{user}"),
        ("/dev/shm", f"rfaas-cache-{user}"),
    ):
        if base and base.startswith("/"):
            yield os.path.join(base, name)


def make_private(folder):
    """A directory of ours that nobody else may write to, or OSError."""
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    except FileNotFoundError:
        os.mkdir(os.path.dirname(folder), 0o700)  # ~/.cache; not the way to it
        os.mkdir(folder, 0o700)
    found = os.lstat(folder)
    if found.st_mode & 0o170000 != 0o040000:
        raise OSError(20, "it is not a directory")
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise OSError(1, "it belongs to another user, or others may write to it")


def holds(path, data):
    """Whether the file has that content."""
    try:
        with open(path, "rb", 0) as file:
            return os.fstat(file.fileno()).st_uid == os.geteuid() and file.read() == data
    except OSError:
        return False


def write(path, data):
    """Put the content there at once, or not at all."""
    part = f"{path}.{os.urandom(8).hex()}"  # a home has many nodes, and each may have our pid
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700)
    try:
        with open(fd, "wb", 0) as file:
            if file.write(data) != len(data):
                raise OSError(28, os.strerror(28))
        os.rename(part, path)
    except OSError:
        os.unlink(part)
        raise
