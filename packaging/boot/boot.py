"""The first Python code of the zipapp, which lies in its header, behind the shell script.

Finds the code for this Python, checks it and runs it.  Read by every Python 3, so
that an old one can say that it is too old.
"""

import sys

RUN = "@RUN@"


def boot(file):
    with open(file, "rb") as f:
        head = f.read(4096)
        wanted = head.partition(b"\n#= ")[2].partition(b"\n")[0].decode()
        if sys.version_info >= (3, 10):
            import _imp
            import marshal

            row = head.partition(b"\n#: " + _imp.extension_suffixes()[0].encode() + b" ")[2]
            if row:
                start, size, check, index = row.split(None, 4)[:4]
                f.seek(int(start))
                data = f.read(int(size))
                if _imp.source_hash(0, data).hex() == check.decode():
                    run = {"__name__": "rfaas-boot"}
                    exec(marshal.loads(data), run)
                    return run["run"](file, data, int(index), RUN)
                say = (
                    "rfaas: "
                    + file
                    + " is damaged: it was cut off or altered\nhint: copy it again\n"
                )
                sys.stderr.write(say)
                sys.exit(65)
    import os

    names = [] if os.environ.get("RFAAS_PYTHON") else ["python" + v for v in wanted.split()]
    for name in names:
        for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
            python = os.path.join(folder, name)
            if os.path.isfile(python) and os.access(python, os.X_OK):
                os.environ["RFAAS_PYTHON"] = python
                os.execv("/bin/sh", ["sh", file] + sys.argv[2:])
    sys.stderr.write(
        "rfaas: needs CPython "
        + ", ".join(wanted.split())
        + " for Linux on x86-64 with glibc, and "
        + str(sys.executable)
        + " is "
        + sys.version.split()[0]
        + "\nhint: install one, name it with RFAAS_PYTHON, or use @BINARY@, which needs none\n"
    )
    sys.exit(69)


boot(sys.argv[1])
