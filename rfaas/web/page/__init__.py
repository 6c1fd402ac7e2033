"""The dashboard: a page, a style and two scripts, served as they are.

Read through the loader, so that they are found in a zip as well.
"""

from __future__ import annotations

import os

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}


def read(name: str) -> tuple[str, bytes]:
    """A file's media type and bytes."""
    path = os.path.join(os.path.dirname(__file__), name)
    data: bytes = __loader__.get_data(path)  # type: ignore[name-defined]
    return KINDS[os.path.splitext(name)[1]], data
