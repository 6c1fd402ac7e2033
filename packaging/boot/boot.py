"""The first Python code of the zipapp, which lies in its header, behind the shell script.

Finds the code for this Python, checks it and runs it.  Read by every Python 3, so
that an old one can say that it is too old: refuse.py does, the next piece of the
header, which is compiled only then (each KB takes 0.2 ms).
"""

import sys

RUN = "@RUN@"


def boot(file):
    with open(file, "rb") as f:
        head = f.read(4096)
        check = ""
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
                    run["run"](file, data, int(index), RUN)
                    return
    exec(head.split(b"\n#|\n")[2], {"file": file, "head": head, "is_damaged": check != ""})


boot(sys.argv[1])
