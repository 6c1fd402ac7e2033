"""What boot.py runs where it cannot go on: the file is damaged, or is not for this Python.

Runs in any Python 3; finds `file`, `head`, its first bytes, and `is_damaged`.
"""

import os
import sys

if is_damaged:
    sys.stderr.write(
        "rfaas: " + file + " is damaged: it was cut off or altered\nhint: copy it again\n"
    )
    sys.exit(65)
wanted = head.partition(b"\n#= ")[2].partition(b"\n")[0].decode()
for name in [] if os.environ.get("RFAAS_PYTHON") else ["python" + v for v in wanted.split()]:
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
