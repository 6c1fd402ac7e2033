"""What was answered over HTTP outlives the manager: row 37 for what people do."""

from __future__ import annotations

import http.client
import os

import pytest

from rfaas.failpoints import VARIABLE
from tests.harness.processes import until
from tests.harness.site import Site
from tests.web.http import Web, serve

NODE = os.uname().nodename
TURNS_MAX = 50
TURN = 6  # of the store's transactions: some drains and undrains are answered before it


@pytest.mark.parametrize("place", ["store.begun", "store.written", "store.committed"])
def test_row_37_what_was_answered_is_kept(site: Site, place: str) -> None:
    """The manager dies in a transaction while a node is drained and undrained, again and again."""
    site.environ[VARIABLE] = f"{place}={TURN}"
    web = serve(site)
    del site.environ[VARIABLE]
    site.killed = True
    site.start("executor")
    answered = asked = ""
    try:
        for turn in range(TURNS_MAX):
            asked = ("drain", "undrain")[turn % 2]
            assert web.ask(f"/v1/nodes/{NODE}/{asked}", "POST", "operate").status == 200
            answered = asked
        pytest.fail(f"the manager never got to {place}")
    except (http.client.HTTPException, OSError):
        assert web.manager.wait() == -9
    assert answered, "nothing was answered before the failpoint"

    web = serve(site)
    until(lambda: state(web) != "lost", "the node again")
    kept = {"draining": "drain", "up": "undrain"}[state(web)]
    assert kept == (asked if place == "store.committed" else answered)


def state(web: Web) -> str:
    nodes = web.ask("/v1/nodes").json["nodes"]
    return str(nodes[0]["state"]) if nodes else "lost"
