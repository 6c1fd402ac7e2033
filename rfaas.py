#!/bin/sh
""":"
# Runs rFaaS from this tree, in the tree's own environment, whatever starts it.
#
# sh reads these lines as commands and leaves at exec or exit; Python reads them
# as a docstring.  Nothing is forked for a path without links in it.
# -I -S: no variables or folders of the user's, no .pth files, and a faster start;
# -X rfaas: a mark for the Python below that it is the tree's own.
case $0 in */*) file=$0 ;; *) file=./$0 ;; esac
while [ -L "$file" ]; do
    target=$(readlink "$file")
    case $target in /*) file=$target ;; *) file=${file%/*}/$target ;; esac
done
tree=${file%/*}
python=$tree/.venv/bin/python
[ -x "$python" ] && exec "$python" -I -S -X rfaas "$tree/rfaas.py" "$@"
echo 'rfaas: this tree is not built yet' >&2
echo 'hint: run `make build` in' "$(unset CDPATH && cd "$tree/" && pwd -P)" >&2
exit 69
"""

import _imp
import os
import sys

EX_UNAVAILABLE = 69  # sysexits.h(3head)


def main():
    """Run the command line in the tree's own environment; return its exit status."""
    file = os.path.realpath(__file__)
    tree = os.path.dirname(file)
    if "rfaas" not in sys._xoptions:
        python = tree + "/.venv/bin/python"
        if os.access(python, os.X_OK):
            os.execv(python, [python, "-I", "-S", "-X", "rfaas", file, *sys.argv[1:]])
        return not_built(tree)
    # The package beside this file is found before the file: packages win.
    major, minor = sys.version_info[:2]
    sys.path.insert(0, tree)
    sys.path.append(f"{tree}/.venv/lib/python{major}.{minor}/site-packages")
    suffix = _imp.extension_suffixes()[0]  # modules of another Python do not count
    if not any(name.endswith(suffix) for name in os.listdir(tree + "/rfaas/native")):
        return not_built(tree)
    from rfaas.cli import main as cli_main

    return cli_main()


def not_built(tree):
    """Say which command builds the tree."""
    sys.stderr.write(f"rfaas: this tree is not built yet\nhint: run `make build` in {tree}\n")
    return EX_UNAVAILABLE


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # while it was still loading; later, rfaas.cli sees to it
        sys.exit(130)
