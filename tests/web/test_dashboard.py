"""The dashboard in a real Chromium: it asks for a key, follows, and can be read without colour."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rfaas.client import Session
from tests.harness.gate import Gate
from tests.harness.site import Site
from tests.web.chromium import Browser, Tab, browser, program
from tests.web.http import Web, serve

NODE = os.uname().nodename
STATES = ("hot", "leased", "free", "draining", "lost")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program()
    with browser(tmp_path_factory.mktemp("chromium")) as made:
        yield made


@pytest.fixture
def tab(chromium: Browser) -> Iterator[Tab]:
    made = chromium.tab()
    made.resize(1180, 800)
    yield made
    made.close()
    assert made.faults == []  # nor did its policy forbid it anything


@pytest.fixture
def web(site: Site) -> Web:
    """A manager and two nodes."""
    made = serve(site)
    site.start("executor", "--name", "alpha")
    site.start("executor", "--name", "beta")
    return made


@pytest.fixture
def session(web: Web) -> Iterator[Session]:
    with web.site.session(client__name="tester") as made:
        yield made


def said(tab: Tab, node: str) -> Any:
    """What stands beside a node's bar."""
    return tab.evaluate(
        f"document.querySelector('#nodes li[data-node=\"{node}\"] .said')?.textContent ?? ''"
    )


def test_it_asks_for_a_key(shared: Web, tab: Tab) -> None:
    tab.open(shared.url)
    assert tab.evaluate("document.getElementById('view').hidden")
    tab.evaluate("document.getElementById('key').value = 'wrong'")
    tab.evaluate("document.querySelector('#door button').click()")
    tab.until("document.getElementById('refusal').textContent === 'this key is unknown'")
    tab.faults.clear()  # the browser calls a 401 an error
    tab.evaluate(f"document.getElementById('key').value = '{shared.key('read')}'")
    tab.evaluate("document.querySelector('#door button').click()")
    tab.until("document.getElementById('link').className === 'live'")
    assert tab.evaluate("document.getElementById('door').hidden")
    tab.evaluate("location.reload()")  # the tab keeps it
    tab.until("document.getElementById('link').className === 'live'")


def test_a_key_in_the_address_is_taken_out_of_it(shared: Web, tab: Tab) -> None:
    tab.open(f"{shared.url}#key={shared.key('read')}")
    tab.until("document.getElementById('link').className === 'live'")
    assert tab.evaluate("location.href") == shared.url


def test_nothing_comes_from_elsewhere(shared: Web, tab: Tab) -> None:
    tab.open(f"{shared.url}#key={shared.key('read')}")
    tab.until("document.getElementById('link').className === 'live'")
    origins = tab.evaluate(
        "[...new Set(performance.getEntriesByType('resource').map((e) => new URL(e.name).origin))]"
    )
    assert origins == [shared.url.rstrip("/")]
    policy = shared.ask("/", role="").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; ")
    assert "unsafe" not in policy


def test_nodes_leases_and_clocks(
    web: Web, session: Session, tab: Tab, held: Path, gate: Callable[[], Gate]
) -> None:
    tab.open(f"{web.url}#key={web.key('read')}")
    tab.until("document.querySelectorAll('#nodes li').length === 2")
    assert said(tab, "alpha") == "2 cores: 2 free"
    at_gate = gate()
    with session.lease(cores=2, library=held) as lease:
        node = lease.node
        future = lease.submit("hold", at_gate.data)
        at_gate.begun()
        row = f"document.querySelector('#leases tr[data-lease=\"{lease.id}\"]')"
        tab.until(row)
        assert tab.evaluate(f"{row}.cells[1].textContent") == "tester"
        # Its clock runs down by itself, between pictures too.
        first = tab.until(f"parseFloat({row}.querySelector('.left').textContent)")
        tab.until(f"parseFloat({row}.querySelector('.left').textContent) < {first}")
        # A call runs: a core of its node is hot, and nothing is free.
        bar = f"document.querySelector('#nodes li[data-node=\"{node}\"] .bar')"
        tab.until(f"{bar}.querySelector('.hot')")
        assert not tab.evaluate(f"{bar}.querySelector('.free')")
        at_gate.release()
        future.result()
    tab.until(f"!{row}")
    tab.until("document.querySelector('#events li').textContent.includes('ended')")
    events = tab.evaluate("document.getElementById('events').innerText")
    assert f"lease {lease.id[:8]} granted 2 cores on {node} for tester" in events
    assert "node beta joined" in events


def test_calls_are_plotted(web: Web, session: Session, tab: Tab, shipped: Path) -> None:
    tab.open(f"{web.url}#key={web.key('read')}")
    with session.lease(library=shipped) as lease:
        for _ in range(500):
            lease.call("echo", b"abc")
        tab.until("document.querySelector('#calls .line')")
        tab.until("parseFloat(document.getElementById('calls-now').textContent) > 0")
        tab.until("document.querySelector('#time .line, #time .dot')")
        tab.until("document.querySelector('#grant .line, #grant .dot')")
    label = tab.evaluate("document.getElementById('calls').getAttribute('aria-label')")
    assert label.startswith("the last two minutes; now ")


def test_draining_and_lost_nodes(web: Web, tab: Tab) -> None:
    tab.open(f"{web.url}#key={web.key('read')}")
    tab.until("document.querySelectorAll('#nodes li').length === 2")
    web.ask("/v1/nodes/alpha/drain", "POST", "operate")
    tab.until("document.querySelector('li[data-node=alpha][data-state=draining]')")
    assert said(tab, "alpha") == "2 cores: 2 draining"
    web.site.kill(web.site.children[2])
    tab.until("document.querySelector('li[data-node=beta][data-state=lost]')")
    assert said(tab, "beta") == "2 cores: 2 lost"


def test_states_are_told_without_colour(shared: Web, tab: Tab) -> None:
    """Each has a pattern of its own, and words."""
    tab.open(f"{shared.url}#key={shared.key('read')}")
    tab.until("document.querySelectorAll('#nodes li').length === 1")
    patterns = {}
    for state in STATES:
        patterns[state] = tab.evaluate(
            f"getComputedStyle(document.querySelector('.legend .{state}')).backgroundImage"
        )
    assert patterns.pop("hot") == "none"  # full
    assert patterns.pop("free") == "none"  # empty
    assert len(set(patterns.values())) == len(patterns) == 3
    words = tab.evaluate("document.querySelector('.legend').innerText").split()
    assert words == list(STATES)
    assert tab.evaluate(
        "document.querySelector('#nodes .bar').getAttribute('aria-label')"
    ).startswith(f"{NODE}: 2 free")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 768, 1180])
def test_it_fits(shared: Web, tab: Tab, shipped: Path, width: int, scheme: str) -> None:
    """No sideways scrolling, and text that can be told from its ground."""
    tab.resize(width, 700, mobile=width < 500)
    tab.scheme(scheme)
    with shared.site.session() as session, session.lease(library=shipped):
        tab.open(f"{shared.url}#key={shared.key('read')}")
        tab.until("document.querySelectorAll('#leases tbody tr').length > 0")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        for place in ("body", ".quiet", "#events time", "figcaption", "#nodes .said"):
            assert contrast(tab, place) >= 4.5, place  # WCAG 2.2, 1.4.3


def contrast(tab: Tab, place: str) -> float:
    """Of a text and what is behind it, as WCAG has it."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[4:-1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    ink = tab.evaluate(f"getComputedStyle(document.querySelector('{place}')).color")
    paper = tab.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    high, low = sorted((luminance(ink), luminance(paper)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_a_hostile_name_is_text(site: Site, tab: Tab) -> None:
    """What clients call themselves never becomes markup."""
    from rfaas.client.session import Session as Raw  # noqa: F401 - its messages are sent by hand
    from rfaas.control import link as links
    from rfaas.proto.messages import PROTOCOL_VERSION, Hello, LeaseGranted, RequestLease

    web = serve(site, "all")
    name = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    link = links.connect(
        site.address(), Hello(version=PROTOCOL_VERSION, role="client", name="tester")
    )
    try:
        asked = RequestLease(client=name, cores=1, memory_bytes=1 << 20, duration_s=60.0)
        link.ask(asked, LeaseGranted)
        tab.open(f"{web.url}#key={web.key('read')}")
        tab.until("document.querySelectorAll('#leases tbody tr').length === 1")
        shown = tab.evaluate("document.querySelector('#leases tbody tr').cells[1].textContent")
        assert shown == name
        assert tab.evaluate("document.title") == "rFaaS"
        assert tab.evaluate("document.querySelectorAll('img').length") == 0
    finally:
        link.close()


def test_a_manager_that_comes_back_is_found(site: Site, tab: Tab) -> None:
    web = serve(site)
    port = web.address[1]
    tab.open(f"{web.url}#key={web.key('read')}")
    tab.until("document.getElementById('link').className === 'live'")
    web.manager.signal(signal.SIGTERM)
    web.manager.wait()
    tab.until("document.getElementById('link').className === 'lost'")
    site.set(http__address=f"127.0.0.1:{port}")
    site.start("resource-manager")
    tab.until("document.getElementById('link').className === 'live'")
    tab.faults.clear()  # that it was away is an error to the browser
