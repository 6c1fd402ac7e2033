"""Row 37: the resource manager is killed with -9 at each of its failpoints, and started again."""

from __future__ import annotations

import pytest

from rfaas.control import link as links
from rfaas.control.link import Link
from rfaas.errors import CapacityError, PeerLostError
from rfaas.failpoints import PLACES, VARIABLE
from rfaas.proto import messages as m
from rfaas.proto.proof import prove
from tests.harness.site import Site

CORES = 16
TURNS_MAX = 200


class Client:
    """Leases and releases in turn, and knows what it was told."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}  # secrets of leases that were granted
        self.released: set[str] = set()
        self.unsure: set[str] = set()  # releases that were asked for and not answered

    def request(self, link: Link) -> None:
        asked = m.RequestLease(
            client="tester", cores=1, memory_bytes=1 << 20, duration_s=600.0, isolation="process"
        )
        granted = link.ask(asked, m.LeaseGranted)
        self.held[granted.lease] = granted.secret

    def release(self, link: Link, lease: str) -> None:
        secret = self.held.pop(lease)
        self.unsure.add(lease)
        link.ask(m.ReleaseLease(lease=lease, proof=prove(secret, link.nonce, lease)), m.Done)
        self.unsure.discard(lease)
        self.released.add(lease)

    def work(self, link: Link) -> None:
        """Until the manager is gone: three leases, two releases, and so on."""
        for turn in range(TURNS_MAX):
            if turn % 5 < 3:
                self.request(link)
            else:
                self.release(link, next(iter(self.held)))
            if len(self.held) == CORES - 2:
                self.release(link, next(iter(self.held)))


def connect(site: Site, role: str) -> Link:
    hello = m.Hello(version=m.PROTOCOL_VERSION, role=role, name=f"some-{role}")
    return links.connect(site.address(), hello)


def join(site: Site) -> Link:
    link = connect(site, "executor")
    node = m.JoinNode(
        node="n1",
        address="unix:/n1",
        incarnation="1" * 32,
        cores=CORES,
        memory_bytes=1 << 30,
        isolation=("process",),
    )
    link.ask(node, m.NodeJoined)
    return link


@pytest.mark.parametrize("turn", [3, 8])
@pytest.mark.parametrize("place", PLACES)
def test_row_37_manager_killed_at_a_failpoint(site: Site, place: str, turn: int) -> None:
    site.environ[VARIABLE] = f"{place}={turn}"
    manager = site.start("resource-manager")
    del site.environ[VARIABLE]
    site.killed = True
    client = Client()
    executor, link = None, None
    try:
        executor = join(site)
        link = connect(site, "client")
        client.work(link)
        pytest.fail(f"the manager never got to {place} {turn} times")
    except PeerLostError:
        pass
    finally:
        for one in (executor, link):
            if one is not None:
                one.close()
    assert manager.wait() == -9

    site.start("resource-manager")
    executor = join(site)
    link = connect(site, "client")
    live = {one.lease for one in link.ask(m.ListLeases(), m.Leases).leases}
    assert live >= client.held.keys(), "an acknowledged lease was lost"
    assert not live & client.released, "a lease that was given back is held"
    assert len(live - client.held.keys()) <= 1, "only the one that was under way may be unknown"
    for lease, secret in client.held.items():  # and each is its client's still
        proof = prove(secret, link.nonce, lease)
        asked = m.RenewLease(lease=lease, duration_s=600.0, proof=proof)
        assert link.ask(asked, m.LeaseGranted).lease == lease
    free = CORES - len(live)
    for _ in range(free):
        client.request(link)
    with pytest.raises(CapacityError):
        client.request(link)
    for lease in list(client.held):
        client.release(link, lease)
    (node,) = link.ask(m.ListNodes(), m.Nodes).nodes
    assert node.cores_free == CORES - len(live - client.held.keys() - client.released)
    executor.close()
    link.close()
