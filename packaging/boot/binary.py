"""What PyInstaller's binary runs first."""

import os
import sys

# The bootloader's, for its own libraries; what we start must find the system's.
original = os.environ.pop("LD_LIBRARY_PATH_ORIG", None)
if original is None:
    os.environ.pop("LD_LIBRARY_PATH", None)
else:
    os.environ["LD_LIBRARY_PATH"] = original

# boot/first.c chose where to unpack; what we start is to know what the user said.
before = os.environ.pop("_RFAAS_TMPDIR", None)
if before is not None:
    del os.environ["TMPDIR"]
    if before:
        os.environ["TMPDIR"] = before[1:]

if sys.argv[1:2] == ["--unpack-image"]:  # rfaas/launch/images.py, which has no Python to run
    from rfaas.launch.unpack import main as unpack

    sys.exit(unpack(sys.argv[2:]))

from rfaas.cli import main  # noqa: E402

sys.exit(main())
