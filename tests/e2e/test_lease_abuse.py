"""Rows 1 to 6 of the matrix of abuse, at real executors: tokens that are not the shower's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from rfaas.control import link as links
from rfaas.control.link import Link
from rfaas.errors import (
    LeaseEndedError,
    NotPermittedError,
    PeerLostError,
    ProtocolError,
    RfaasError,
)
from rfaas.proto import messages as m
from rfaas.proto.proof import prove
from tests.harness.processes import until
from tests.harness.site import Site

Connect = Callable[..., Link]


@pytest.fixture
def connect(site: Site) -> Iterator[Connect]:
    made: list[Link] = []

    def to(role: str = "executor", address: str = "") -> Link:
        hello = m.Hello(version=m.PROTOCOL_VERSION, role="client", name="tester")
        made.append(links.connect(address or site.address(role), hello))
        return made[-1]

    yield to
    for link in made:
        link.close()


def grant(link: Link, **more: object) -> m.LeaseGranted:
    asked = m.RequestLease(client="tester", cores=1, memory_bytes=1 << 20, duration_s=60.0)
    return link.ask(asked, m.LeaseGranted)


def shown(link: Link, granted: m.LeaseGranted, token: bytes = b"") -> m.OpenLease:
    """What the client of a lease shows on a link of its own."""
    proof = prove(granted.secret, link.nonce, granted.lease)
    return m.OpenLease(token=token or granted.token, proof=proof)


def leases_open(link: Link) -> object:
    return link.ask(m.GetStatus(), m.StatusReport).facts["leases"]


def test_row_1_forged_lease(site: Site, connect: Connect) -> None:
    """One bit flipped: refused, counted, and the third time the link is closed."""
    site.start("executor", "--resource-manager", "none")
    observer = connect()
    granted = grant(observer)
    tries = 0
    for turn in range(20):
        link = connect()
        for _ in range(3):
            forged = bytearray(granted.token)
            at = (turn * 3 + tries * 7) % (8 * len(forged))
            forged[at // 8] ^= 1 << at % 8
            with pytest.raises(ProtocolError):
                link.ask(shown(link, granted, bytes(forged)), m.LeaseOpened)
            tries += 1
        with pytest.raises((PeerLostError, NotPermittedError)):  # the right one is too late now
            link.ask(shown(link, granted), m.LeaseOpened)
    assert leases_open(observer) == 0
    facts = observer.ask(m.GetStatus(), m.StatusReport).facts
    assert facts["tokens refused"] == tries == 60
    own = connect()
    assert own.ask(shown(own, granted), m.LeaseOpened).lease == granted.lease


def test_row_2_another_client_s_lease(site: Site, connect: Connect) -> None:
    """A token and a whole message that were overheard are of no use on another link."""
    site.start("executor", "--resource-manager", "none")
    victim, thief = connect(), connect()
    theirs, own = grant(victim), grant(thief)
    overheard = shown(victim, theirs)
    for stolen in (
        m.OpenLease(token=theirs.token),
        overheard,
        m.OpenLease(token=theirs.token, proof=prove(own.secret, thief.nonce, theirs.lease)),
    ):
        link = connect()
        with pytest.raises(NotPermittedError, match="is another client's"):
            link.ask(stolen, m.LeaseOpened)
    proof = prove(own.secret, thief.nonce, theirs.lease)
    with pytest.raises(NotPermittedError):
        thief.ask(m.ReleaseLease(lease=theirs.lease, proof=proof), m.Done)
    with pytest.raises(NotPermittedError):
        thief.ask(m.RenewLease(lease=theirs.lease, duration_s=60.0, proof=proof), m.LeaseGranted)
    assert victim.ask(overheard, m.LeaseOpened).lease == theirs.lease
    second = connect()
    with pytest.raises(ProtocolError, match="is open on another link"):
        second.ask(shown(second, theirs), m.LeaseOpened)
    for message in (
        m.StopWorker(lease=theirs.lease),
        m.ListFunctions(lease=theirs.lease, start=0),
        m.StartWorker(
            lease=theirs.lease, sha256="0" * 64, slots=1, slot_bytes=4096, hot_timeout_ms=0
        ),
    ):
        with pytest.raises(NotPermittedError, match="is another client's"):
            thief.request(message)


def test_row_2_another_client_s_lease_at_the_manager(site: Site, connect: Connect) -> None:
    site.start("resource-manager")
    site.start("executor")
    victim, thief = connect("resource-manager"), connect("resource-manager")
    theirs = grant(victim)
    (listed,) = thief.ask(m.ListLeases(), m.Leases).leases
    assert listed.lease == theirs.lease  # ids are no secret
    for _ in range(2):
        with pytest.raises(NotPermittedError):
            thief.ask(m.ReleaseLease(lease=listed.lease), m.Done)
    with pytest.raises(NotPermittedError):
        thief.ask(m.RenewLease(lease=listed.lease, duration_s=60.0), m.LeaseGranted)
    with pytest.raises(PeerLostError):  # three were enough
        thief.ask(m.ListLeases(), m.Leases)
    facts = victim.ask(m.GetStatus(), m.StatusReport).facts
    assert (facts["leases live"], facts["proofs refused"]) == (1, 3)
    victim.ask(m.ReleaseLease(lease=theirs.lease), m.Done)  # on the link that asked for it


def test_row_3_guessed_lease_id(site: Site, connect: Connect) -> None:
    site.start("executor", "--resource-manager", "none")
    link = connect()
    granted = grant(link)
    first = int(granted.lease, 16)
    ids = [f"{number:032x}" for number in range(200)]
    ids += [f"{(first + step) % 2**128:032x}" for step in range(-100, 101) if step]
    for guess in ids:
        with pytest.raises(LeaseEndedError):
            link.ask(m.StopWorker(lease=guess), m.WorkerStopped)
    link.ask(m.ReleaseLease(lease=granted.lease, proof=shown(link, granted).proof), m.Done)
    drawn = []
    for _ in range(64):
        one = grant(link)
        drawn.append(one.lease)
        link.ask(m.ReleaseLease(lease=one.lease, proof=shown(link, one).proof), m.Done)
    assert len(set(drawn)) == 64
    assert len({lease[:4] for lease in drawn}) > 60  # no counter, no clock in front


def test_row_4_replayed_alloc_and_close(site: Site, connect: Connect) -> None:
    """The same message again is the same answer, and resources are counted once."""
    manager = site.start("resource-manager")
    site.start("executor")
    link = connect("resource-manager")
    granted = grant(link)
    node = connect(address=granted.address)
    for _ in range(3):
        assert node.ask(shown(node, granted), m.LeaseOpened).lease == granted.lease
    assert leases_open(node) == 1
    site.kill(manager)
    site.start("resource-manager")
    link = connect("resource-manager")
    release = m.ReleaseLease(
        lease=granted.lease, proof=prove(granted.secret, link.nonce, granted.lease)
    )
    for _ in range(3):
        link.ask(release, m.Done)
    until(lambda: leases_open(node) == 0, "the node has heard of it")
    with pytest.raises(LeaseEndedError):
        node.ask(shown(node, granted), m.LeaseOpened)
    until(
        lambda: [one.cores_free for one in link.ask(m.ListNodes(), m.Nodes).nodes] == [2],
        "its core is free once",
    )


def test_row_5_lease_used_on_another_node(site: Site, connect: Connect) -> None:
    site.start("resource-manager")
    for name in ("a", "b"):
        site.start("executor", "--set", f"executor.name={name}")
    link = connect("resource-manager")
    granted = grant(link)
    (other,) = [one for one in link.ask(m.ListNodes(), m.Nodes).nodes if one.node != granted.node]
    stranger = connect(address=other.address)
    with pytest.raises(ProtocolError, match=f"is not signed for node {other.node}"):
        stranger.ask(shown(stranger, granted), m.LeaseOpened)
    assert leases_open(stranger) == 0
    right = connect(address=granted.address)
    right.ask(shown(right, granted), m.LeaseOpened)


def test_row_6_expired_lease(site: Site, connect: Connect) -> None:
    """The node ends it by its own monotonic clock, and no token revives it."""
    site.start("executor", "--resource-manager", "none")
    link = connect()
    asked = m.RequestLease(client="tester", cores=1, memory_bytes=1 << 20, duration_s=0.2)
    granted = link.ask(asked, m.LeaseGranted)
    link.ask(shown(link, granted), m.LeaseOpened)
    until(lambda: leases_open(link) == 0, "it has expired")
    for message, kind in (
        (shown(link, granted), m.LeaseOpened),
        (
            m.RenewLease(lease=granted.lease, duration_s=9.0, proof=shown(link, granted).proof),
            m.LeaseGranted,
        ),
    ):
        with pytest.raises(RfaasError) as refused:
            link.ask(message, kind)
        assert isinstance(refused.value, LeaseEndedError)
