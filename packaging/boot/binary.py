"""What PyInstaller's binary runs first."""

import os
import sys

# The bootloader's, for its own libraries; what we start must find the system's.
original = os.environ.pop("LD_LIBRARY_PATH_ORIG", None)
if original is None:
    os.environ.pop("LD_LIBRARY_PATH", None)
else:
    os.environ["LD_LIBRARY_PATH"] = original

from rfaas.cli import main  # noqa: E402

sys.exit(main())
