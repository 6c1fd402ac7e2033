"""Starts the resource manager's web, where it is wanted and can be had."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from rfaas.config import HttpConfig
from rfaas.paths import state_dir
from rfaas.web import packages
from rfaas.web.view import View

if TYPE_CHECKING:
    from rfaas.web.site import Web

log = logging.getLogger("rfaas.http")


def web_of(http: HttpConfig | None, view: View) -> Web | None:
    """The web as it is configured, None where there is to be none or its packages are missing.

    Raises:
        ConfigError: the configuration is wrong.
    """
    if http is None or http.address == "none":
        return None
    if missing := packages.missing():
        log.warning(
            "no page, API and metrics: %s not installed (pip install 'rfaas[web]'); "
            'http.address = "none" does without',
            " and ".join(missing) + (" is" if len(missing) == 1 else " are"),
        )
        return None
    from rfaas.web.site import Web

    own = os.path.join(state_dir(), "http-keys")
    return Web(http, view, make_keys=http.keys == own)
